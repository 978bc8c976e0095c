"""A video of moving objects: each keeps its colour, by default."""

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

import evmamba_mm  # noqa: F401

from ..tools.inference_cases import photo, read_clip, write_clip

pytest.importorskip('mmdet', reason='mmdet is not installed')

from mmdet.apis import DetInferencer
from mmdet.structures import DetDataSample

from evmamba_mm.apis.det_visualizer import ClearDetVisualizer
from evmamba_mm.apis.predictors import Detector
from evmamba_mm.apis.run import Run
from evmamba_mm.apis.sources import Source
from evmamba_mm.apis.tracks import Tracks
from evmamba_mm.apis.weights import Meta

SIDE, FRAMES, STEP = 256, 6, 5
BOXES = [
    (8, 8, 40, 40),
    (44, 8, 76, 40),
    (8, 120, 60, 170),
    (64, 120, 99, 180),
]


class Moving(Detector):
    """Finds the same squares in each frame, further right, in any order."""

    def __init__(self, classes):
        self.inferencer = DetInferencer.__new__(DetInferencer)
        self.inferencer.visualizer = ClearDetVisualizer()
        self.inferencer.num_visualized_imgs = 0
        self.meta = Meta(classes, [(230, 30, 30)] * len(classes))
        self.inferencer.visualizer.dataset_meta = dict(
            classes=classes, palette=self.meta.palette
        )
        self.frame = 0

    def prepare(self, image):
        return torch.zeros(3, SIDE, SIDE), None

    def predict(self, prepared):
        return [self.find() for _ in prepared]

    def find(self):
        order = np.random.default_rng(self.frame).permutation(len(BOXES))
        boxes = torch.tensor(BOXES).float()[order]
        boxes[:, ::2] += STEP * self.frame
        masks = torch.zeros(len(BOXES), SIDE, SIDE, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(
            masks, boxes.int().tolist(), strict=True
        ):
            mask[top:bottom, left:right] = True
        self.frame += 1
        found = InstanceData(bboxes=boxes, masks=masks)
        found.labels = torch.zeros(len(boxes), dtype=torch.long)
        found.scores = torch.rand(len(boxes)) / 2 + 0.5
        return DetDataSample(pred_instances=found)


def colours_of(frames):
    """What lies over the grey middle of each square: (frames, squares, 3)."""
    return np.array(
        [
            [
                picture[
                    top + bottom - 8 : top + bottom + 8,
                    left + right + 2 * STEP * i - 8 : left
                    + right
                    + 2 * STEP * i
                    + 8,
                ].mean((0, 1))
                for left, top, right, bottom in BOXES
            ]
            for i, picture in enumerate(frames)
        ]
    )


@pytest.mark.parametrize(
    'classes, colour_objects, differ',
    [
        (('nucleus',), None, True),
        (('nucleus',), False, False),
        (('cat', 'dog'), None, False),
        (('cat', 'dog'), True, True),
    ],
    ids=['one class', 'by class', 'classes', 'by object'],
)
def test_an_object_keeps_its_colour(
    classes, colour_objects, differ, tmp_path, capsys
):
    clip = tmp_path / 'in' / 'clip.avi'
    clip.parent.mkdir()
    grey = np.full((SIDE, SIDE, 3), 120, np.uint8)
    write_clip(clip, [grey] * FRAMES)
    detector = Moving(classes)
    detector.colour_objects = colour_objects
    run = Run(detector, 2, False)
    source = Source(clip, tmp_path / 'out.mp4', tmp_path / 'out.jsonl')
    run.process([source])
    assert (run.written, run.reported) == (1, 0), capsys.readouterr().err
    _, frames = read_clip(source.target)
    assert len(frames) == FRAMES
    assert frames[0].shape == (2 * SIDE, 2 * SIDE, 3)
    found = colours_of(frames)
    assert np.abs(found - found[0]).max() < 12
    gaps = np.abs(found[0][:, None] - found[0]).max(-1)
    gaps = gaps[~np.eye(len(BOXES), dtype=bool)]
    assert (gaps > 20).all() if differ else (gaps < 12).all()


def test_pictures_share_no_objects():
    """Each image of a folder begins anew, so that its picture is its own."""
    detector = Moving(('nucleus',))
    image = photo(0, SIDE, SIDE)
    pictures = []
    for _ in range(2):
        detector.frame = 3
        pictures.append(detector.draw(image, detector.find()))
    assert (pictures[0] == pictures[1]).all()


def test_drawing_leaves_the_prediction_as_it_is():
    detector = Moving(('nucleus',))
    sample = detector.find()
    detector.draw(photo(0, SIDE, SIDE), sample)
    assert 'colors' not in sample.pred_instances
    assert sample.pred_instances.masks.shape[1:] == (SIDE, SIDE)


def test_masks_without_boxes_are_followed(tmp_path):
    """SOLO and its like hand out boxes of zeros."""
    detector, tracks = Moving(('nucleus',)), Tracks()
    grey, frames = np.full((SIDE, SIDE, 3), 120, np.uint8), []
    for _ in range(3):
        sample = detector.find()
        sample.pred_instances.bboxes *= 0
        frames.append(detector.draw(grey, sample, tracks))
    found = colours_of(frames)
    assert np.abs(found - found[0]).max() < 2
