"""Objects of a video keep their numbers, and with them their colours."""

import pytest
import torch

import evmamba_mm  # noqa: F401
from evmamba_mm.apis.tracks import MEMORY, Tracks

pytest.importorskip('mmdet', reason='mmdet is not installed')


def found(boxes, labels=None):
    labels = [0] * len(boxes) if labels is None else labels
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return boxes, torch.tensor(labels, dtype=torch.long)


def moved(box, x):
    return [box[0] + x, box[1], box[2] + x, box[3]]


A, B, C = [0, 0, 20, 20], [24, 0, 44, 20], [100, 0, 120, 20]


def test_an_object_keeps_its_number_in_any_order():
    tracks = Tracks()
    assert tracks.follow(*found([A, B])) == [0, 1]
    for x in range(4, 60, 4):
        shifted = [moved(C, x), moved(B, x), moved(A, x)]
        assert tracks.follow(*found(shifted)) == [2, 1, 0]


def test_a_new_object_takes_no_old_number():
    tracks = Tracks()
    tracks.follow(*found([A]))
    assert tracks.follow(*found([C])) == [1]
    assert tracks.follow(*found([A], [1])) == [2]


def test_an_object_is_remembered_for_some_frames():
    for pause, number in ((MEMORY, 0), (MEMORY + 1, 1)):
        tracks = Tracks()
        tracks.follow(*found([A]))
        for _ in range(pause):
            assert tracks.follow(*found([])) == []
        assert tracks.follow(*found([A])) == [number]


def test_a_small_object_that_moves_is_found_again():
    """After two frames it lies beside its last box."""
    tracks, small = Tracks(), [0, 0, 12, 12]
    for x in (0, 6, 12):
        assert tracks.follow(*found([moved(small, x)])) == [0]
    for _ in range(2):
        tracks.follow(*found([]))
    assert tracks.follow(*found([moved(small, 30)])) == [0]
