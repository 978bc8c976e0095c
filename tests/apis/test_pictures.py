"""What is drawn of detections and maps: colours, sizes and names."""

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData

import evmamba_mm  # noqa: F401
from evmamba_mm.apis.enlarging import (
    enlarge_image,
    enlarge_sample,
    times_for,
)

for host in ('mmdet', 'mmseg'):
    pytest.importorskip(host, reason=f'{host} is not installed')

from mmdet.structures import DetDataSample  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

from evmamba_mm.apis.det_visualizer import ClearDetVisualizer  # noqa: E402
from evmamba_mm.apis.seg_visualizer import ClearSegVisualizer  # noqa: E402

PALETTE = [(220, 20, 60), (0, 120, 240), (10, 160, 20)]
CLASSES = ('cat', 'dog', 'bird')


def discs(boxes, labels, side=256):
    """A sample whose masks are the ellipses in the boxes."""
    y, x = np.mgrid[:side, :side] + 0.5
    masks = [
        ((x - (a + c) / 2) / (c - a)) ** 2 + ((y - (b + d) / 2) / (d - b)) ** 2
        < 0.25
        for a, b, c, d in boxes
    ]
    found = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.tensor(labels),
        scores=torch.linspace(0.95, 0.5, len(boxes)),
        masks=torch.tensor(np.stack(masks)),
    )
    return DetDataSample(pred_instances=found)


def grid(count=30, side=256):
    """As many small discs as a crowded microscope image holds."""
    lefts = [(40 * (i % 6) + 8, 48 * (i // 6) + 8) for i in range(count)]
    boxes = [(x, y, x + 26, y + 22) for x, y in lefts]
    return discs(boxes, [0] * count, side)


def visualizer(classes=CLASSES):
    made = ClearDetVisualizer()
    made.dataset_meta = dict(classes=classes, palette=PALETTE[: len(classes)])
    return made


def drawn(visualizer, image, sample):
    visualizer.add_datasample('a', image, sample, draw_gt=False)
    return visualizer.get_image()


def noise(side=256, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(60, 200, (side, side, 3), np.uint8)


def tint(image, picture, alpha=0.35):
    """The colour that was laid over an image."""
    return (picture - (1 - alpha) * image.astype(float)) / alpha


def middle(box):
    left, top, right, bottom = box
    return slice((top + bottom) // 2 - 4, (top + bottom) // 2 + 4), slice(
        (left + right) // 2 - 4, (left + right) // 2 + 4
    )


def test_a_mask_has_the_colour_of_its_box_in_every_picture():
    boxes = [(20, 40, 100, 120), (130, 130, 230, 220)]
    image, sample = noise(), discs(boxes, [0, 1])
    pictures = [drawn(visualizer(), image, sample) for _ in range(2)]
    assert (pictures[0] == pictures[1]).all()
    for box, colour in zip(boxes, PALETTE, strict=False):
        place = middle(box)
        found = tint(image[place], pictures[0][place])
        assert np.abs(found - colour).max() < 4
        edge = pictures[0][box[1], (box[0] + box[2]) // 2]
        assert np.abs(edge.astype(int) - colour).max() < 60


def test_a_mask_shows_what_it_marks():
    image, box = noise(), (40, 40, 200, 200)
    picture = drawn(visualizer(), image, discs([box], [2]))
    place = middle(box)
    kept = np.std(picture[place].astype(float), axis=(0, 1))
    assert (kept > 0.5 * np.std(image[place].astype(float), (0, 1))).all()


def written(visualizer, sample):
    """The names that are written; a whole picture would forget them."""
    meta = visualizer.dataset_meta.values()
    if 'pred_instances' in sample:
        visualizer._draw_instances(noise(), sample.pred_instances, *meta)
    else:
        visualizer._draw_sem_seg(noise(), sample.pred_sem_seg, *meta)
    return visualizer.ax_save.texts


@pytest.mark.parametrize(
    'classes, labels, expected',
    [
        (('cat',), 'auto', 0),
        (('cat',), 'all', 30),
        (CLASSES, 'none', 0),
        (CLASSES, 'all', 30),
    ],
)
def test_names_can_be_left_out(classes, labels, expected):
    made = visualizer(classes)
    made.labels = labels
    assert len(written(made, grid())) == expected


@pytest.mark.parametrize('kind', ['detection', 'segmentation'])
def test_names_are_whole_and_cover_no_other(kind):
    if kind == 'detection':
        made = visualizer(('a long name of a class', *CLASSES[1:]))
        boxes = [(0, 0, 20, 20), (236, 236, 256, 256), (228, 0, 256, 30)]
        some = grid(24).pred_instances
        some = InstanceData(
            **{key: some[key] for key in ('bboxes', 'labels', 'scores')}
        )
        corners = discs(boxes, [0, 1, 0]).pred_instances
        corners.pop('masks')
        sample = DetDataSample(pred_instances=some.cat([corners, some]))
    else:
        made = ClearSegVisualizer()
        rows = stripes(20).transpose(1, 2)
        sample = SegDataSample(pred_sem_seg=PixelData(data=rows))
        made.dataset_meta = dict(
            classes=[f'a long name {i}' for i in range(20)],
            palette=[(10 * i, 0, 0) for i in range(20)],
        )
    texts = written(made, sample)
    boxes = [text.get_window_extent() for text in texts]
    assert 5 < len(boxes)
    for index, box in enumerate(boxes):
        assert 0 <= box.x0 and box.x1 <= 256.1, texts[index]
        assert 0 <= box.y0 and box.y1 <= 256.1, texts[index]
        assert not any(box.overlaps(other) for other in boxes[:index])


def stripes(count, side=256):
    return (torch.arange(side) * count // side).expand(1, side, side)


def test_the_surest_detection_keeps_its_name():
    made = visualizer()
    box = (60, 60, 90, 90)
    found = written(made, discs([box] * 12, [0] * 11 + [1]))
    assert found[0].get_text() == 'cat 0.95'
    assert len(found) < 12


def test_a_segment_is_named_inside_of_itself():
    ring = torch.zeros(1, 256, 256, dtype=torch.long)
    ring[0, 40:216, 40:216] = 1
    ring[0, 80:216, 60:196] = 0
    made = ClearSegVisualizer()
    made.dataset_meta = dict(classes=('a', 'b'), palette=PALETTE[:2])
    sample = SegDataSample(pred_sem_seg=PixelData(data=ring))
    (text,) = [t for t in written(made, sample) if t.get_text() == 'b']
    box = text.get_window_extent()
    x, y = (box.x0 + box.x1) / 2, 256 - (box.y0 + box.y1) / 2
    assert ring[0, round(y), round(x)] == 1


@pytest.mark.parametrize(
    'size, times',
    [
        ((256, 256), 2),
        ((160, 160), 3),
        ((480, 640), 1),
        ((800, 1333), 1),
        ((1, 1), 8),
        ((64, 4000), 1),
    ],
)
def test_small_images_are_enlarged(size, times):
    assert times_for(*size) == times


def test_what_is_predicted_grows_with_the_image():
    sample = discs([(20, 40, 100, 120)], [1])
    sample.pred_panoptic_seg = PixelData(sem_seg=stripes(4))
    larger = enlarge_sample(sample.clone(), 3)
    found = larger.pred_instances
    assert found.bboxes.tolist() == [[60, 120, 300, 360]]
    assert found.masks.shape == (1, 768, 768)
    area = sample.pred_instances.masks.sum() * 9
    assert abs(found.masks.sum() - area) < 0.02 * area
    labels = larger.pred_panoptic_seg.sem_seg
    assert (labels[:, ::3, ::3] == stripes(4)).all()
    assert labels.shape == (1, 768, 768)
    assert enlarge_image(noise(), 3).shape == (768, 768, 3)
    assert sample.pred_instances.bboxes[0, 0] == 20
    empty = discs([(0, 0, 9, 9)], [0])
    empty.pred_instances = empty.pred_instances[:0]
    assert enlarge_sample(empty, 2).pred_instances.masks.shape[1:] == (
        512,
        512,
    )


def test_thirty_nuclei_stay_visible():
    """Of an image of 256 pixels, thin lines and names cover little."""
    image, sample = noise(), grid()
    image, sample = enlarge_image(image, 2), enlarge_sample(sample, 2)
    picture = drawn(visualizer(('nucleus',)), image, sample)
    inside = sample.pred_instances.masks.numpy()
    expected = 0.65 * image + 0.35 * np.array(PALETTE[0])
    hidden = np.abs(picture - expected).max(-1) > 3
    assert np.mean(hidden[inside.any(0)]) < 0.2
