import mmcv.ops
import pytest
import torch

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def random_boxes(count, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 60, (count, 2), generator=generator)
    size = torch.randint(1, 40, (count, 2), generator=generator)
    return torch.cat([corner, corner + size], 1).double() * scale


def reference(a, b, mode, offset):
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    shared = max(width, 0) * max(height, 0)
    areas = [
        (box[2] - box[0] + offset) * (box[3] - box[1] + offset)
        for box in (a, b)
    ]
    return shared / (sum(areas) - shared if mode == 'iou' else areas[0])


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('mode', ['iou', 'iof'])
# Areas of the larger boxes exceed what fp16 can hold.
@pytest.mark.parametrize('scale', [1, 16], ids=['small', 'large'])
def test_all_pairs(device, scale, mode, offset, dtype):
    boxes1, boxes2 = random_boxes(7, scale, 0), random_boxes(5, scale, 1)
    ious = mmcv.ops.bbox_overlaps(
        boxes1.to(device, dtype), boxes2.to(device, dtype), mode, False, offset
    )
    expected = torch.tensor(
        [
            [reference(a, b, mode, offset) for b in boxes2.tolist()]
            for a in boxes1.tolist()
        ],
        dtype=torch.float64,
    )
    assert ious.dtype == dtype and ious.device.type == device.type
    assert (expected > 0).any()
    tolerance = max(torch.finfo(dtype).eps, 1e-7)
    torch.testing.assert_close(
        ious.cpu().double(), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize('mode', ['iou', 'iof'])
def test_aligned_pairs(device, mode):
    boxes1, boxes2 = random_boxes(9, 1, 0), random_boxes(9, 1, 1)
    ious = mmcv.ops.bbox_overlaps(
        boxes1.to(device), boxes2.to(device), mode, aligned=True, offset=1
    )
    expected = [
        reference(a, b, mode, 1)
        for a, b in zip(boxes1.tolist(), boxes2.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        ious.cpu(), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize('counts', [(0, 3), (3, 0), (0, 0)], ids=str)
def test_no_boxes(device, counts):
    empty = [torch.zeros(count, 4, device=device) for count in counts]
    assert mmcv.ops.bbox_overlaps(*empty).shape == counts
