"""mmcv's NMS functions against loops in Python floats.

Coordinates are whole numbers below 256 and scores are multiples of 1/128, so
that every dtype holds them exactly.
"""

import math
import sys

import mmcv.ops
import numpy as np
import pytest
import torch

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def random_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 60, (count, 2), generator=generator)
    size = torch.randint(1, 40, (count, 2), generator=generator)
    scores = (torch.randperm(count, generator=generator) + 1) / 128
    return torch.cat([corner, corner + size], 1).double(), scores.double()


def iou(a, b, offset):
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    shared = max(width, 0) * max(height, 0)

    def area(box):
        return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)

    return shared / (area(a) + area(b) - shared)


def ranked(scores):
    return sorted(range(len(scores)), key=lambda i: -scores[i])


def reference_nms(boxes, scores, threshold, offset):
    kept = []
    for i in ranked(scores):
        if all(iou(boxes[i], boxes[k], offset) <= threshold for k in kept):
            kept.append(i)
    return kept


def reference_soft_nms(boxes, scores, threshold, sigma, low, method, offset):
    left, result = dict(enumerate(scores)), []
    while left:
        best = max(left, key=left.get)
        score = left.pop(best)
        result.append((best, score))
        for i in list(left):
            overlap = iou(boxes[best], boxes[i], offset)
            if method == 'gaussian':
                left[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                left[i] *= {'linear': 1 - overlap, 'naive': 0}[method]
            if left[i] < low:
                del left[i]
    return result


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('count', [0, 1, 2, 63, 127])
def test_nms(device, count, offset, dtype):
    boxes, scores = random_boxes(count)
    dets, inds = mmcv.ops.nms(
        boxes.to(device, dtype), scores.to(device, dtype), 0.37, offset=offset
    )
    expected = reference_nms(boxes.tolist(), scores.tolist(), 0.37, offset)
    assert inds.tolist() == expected
    assert dets.dtype == dtype and dets.device.type == device.type
    torch.testing.assert_close(
        dets.cpu().double(),
        torch.cat([boxes, scores[:, None]], 1)[expected],
        rtol=0,
        atol=0,
    )


def test_nms_offset_matters():
    boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 2.0]])
    scores = torch.tensor([0.9, 0.8])
    # 1 / 2 of the union by plain sides, 4 / 6 by sides that count pixels.
    assert len(mmcv.ops.nms(boxes, scores, 0.6, offset=0)[1]) == 2
    assert len(mmcv.ops.nms(boxes, scores, 0.6, offset=1)[1]) == 1


def test_nms_filters_by_score_and_number(device):
    boxes, scores = random_boxes(63)
    _, inds = mmcv.ops.nms(
        boxes.to(device),
        scores.to(device),
        0.37,
        score_threshold=0.2,
        max_num=5,
    )
    kept = reference_nms(boxes.tolist(), scores.tolist(), 0.37, 0)
    assert inds.tolist() == [i for i in kept if scores[i] > 0.2][:5]


def test_nms_takes_numpy():
    boxes, scores = (x.float().numpy() for x in random_boxes(21))
    dets, inds = mmcv.ops.nms(boxes, scores, 0.37)
    assert isinstance(dets, np.ndarray) and isinstance(inds, np.ndarray)
    assert inds.tolist() == reference_nms(boxes, scores, 0.37, 0)


def test_nms_takes_scores_of_another_dtype(device):
    boxes, scores = random_boxes(21)
    inds = sys.modules['mmcv._ext'].nms(
        boxes.to(device).float(),
        scores.to(device, torch.bfloat16),
        iou_threshold=0.37,
        offset=0,
    )
    expected = reference_nms(boxes.tolist(), scores.tolist(), 0.37, 0)
    assert inds.tolist() == expected


@pytest.mark.parametrize('split', [10000, 10], ids=['together', 'split'])
@pytest.mark.parametrize('kind', ['nms', 'soft_nms'])
def test_batched_nms(device, kind, split):
    boxes, scores = random_boxes(63)
    labels = torch.arange(63) % 3
    found, inds = mmcv.ops.batched_nms(
        boxes.to(device).float(),
        scores.to(device).float(),
        labels.to(device),
        dict(type=kind, iou_threshold=0.37, split_thr=split),
    )
    expected = {}
    for label in range(3):
        mine = (labels == label).nonzero()[:, 0].tolist()
        part = boxes[mine].tolist(), scores[mine].tolist()
        if kind == 'nms':
            kept = reference_nms(*part, 0.37, 0)
            pairs = [(i, part[1][i]) for i in kept]
        else:
            pairs = reference_soft_nms(*part, 0.37, 0.5, 1e-3, 'linear', 0)
        expected.update((mine[i], score) for i, score in pairs)
    assert set(inds.tolist()) == set(expected)
    torch.testing.assert_close(
        found[:, 4].cpu(),
        torch.tensor([expected[i] for i in inds.tolist()]),
        rtol=1e-5,
        atol=1e-6,
    )
    assert (found[:-1, 4] >= found[1:, 4]).all()


@pytest.mark.parametrize('dtype', DTYPES[:2], ids=str)
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('count', [0, 1, 63])
def test_soft_nms(device, count, method, offset, dtype):
    boxes, scores = random_boxes(count)
    # Lowered scores of whole boxes can be equal, these can not.
    scores = scores**0.9
    dets, inds = mmcv.ops.soft_nms(
        boxes.to(device, dtype),
        scores.to(device, dtype),
        iou_threshold=0.3,
        sigma=0.4,
        min_score=0.05,
        method=method,
        offset=offset,
    )
    expected = reference_soft_nms(
        boxes.tolist(), scores.tolist(), 0.3, 0.4, 0.05, method, offset
    )
    assert inds.tolist() == [i for i, _ in expected]
    assert dets.dtype == dtype and dets.device.type == device.type
    assert dets.shape == (len(expected), 5)
    torch.testing.assert_close(
        dets[:, 4].cpu().double(),
        torch.tensor([score for _, score in expected], dtype=torch.float64),
        rtol=1e-5,
        atol=1e-7,
    )
    torch.testing.assert_close(
        dets[:, :4].cpu().double(), boxes[inds.cpu()], rtol=0, atol=0
    )


def test_soft_nms_keeps_a_best_box_below_the_least_score():
    boxes = torch.tensor([[0, 0, 9, 9.0], [50, 50, 60, 60]])
    _, inds = mmcv.ops.soft_nms(
        boxes, torch.tensor([0.01, 0.005]), min_score=0.1
    )
    assert inds.tolist() == [0]


@pytest.mark.parametrize('count', [0, 1, 63])
def test_nms_match(device, count):
    boxes, scores = random_boxes(count)
    dets = torch.cat([boxes, scores[:, None]], 1).to(device)
    groups = [group.tolist() for group in mmcv.ops.nms_match(dets, 0.37)]
    left, expected = ranked(scores.tolist()), []
    while left:
        group = [
            i
            for i in left
            if i == left[0] or iou(boxes[i], boxes[left[0]], 0) >= 0.37
        ]
        expected.append(group)
        left = [i for i in left if i not in group]
    assert groups == expected
