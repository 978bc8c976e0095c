"""The same anchors as mmdet's, made once."""

import copy
import pickle

import pytest
import torch
from mmengine.registry import DefaultScope

pytest.importorskip('mmdet', reason='mmdet is not installed')

from mmdet.registry import TASK_UTILS

from evmamba_mm.detection import anchors

SETTINGS = {
    'rpn': dict(scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8]),
    'retinanet': dict(
        octave_base_scale=4,
        scales_per_octave=3,
        ratios=[0.5, 1.0, 2.0],
        strides=[8, 16],
    ),
}
SIZES = [[(12, 16), (6, 8)], [(16, 12), (8, 6)]]
PADS = [(48, 64), (40, 33)]


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def build(kind, settings):
    return TASK_UTILS.build(dict(type=kind, **settings))


def made(generator, size, pad):
    return [
        *generator.grid_priors(size, device='cpu'),
        *generator.valid_flags(size, pad, device='cpu'),
    ]


@pytest.fixture
def ours():
    return build('CachedAnchorGenerator', SETTINGS['rpn'])


@pytest.mark.parametrize('settings', SETTINGS.values(), ids=SETTINGS)
def test_anchors_and_flags_are_the_hosts(settings):
    theirs = build('AnchorGenerator', settings)
    ours = build('CachedAnchorGenerator', settings)
    assert isinstance(ours, type(theirs))
    for _ in range(2):
        for size in SIZES:
            for pad in PADS:
                expected, found = (made(g, size, pad) for g in (theirs, ours))
                assert all(map(torch.equal, found, expected))
                assert len(found) == len(expected)


def test_a_second_call_makes_nothing(ours):
    first, second = (made(ours, SIZES[0], PADS[0]) for _ in range(2))
    assert all(x is y for x, y in zip(first, second, strict=True))
    half = ours.grid_priors(SIZES[0], torch.float16, 'cpu')
    assert {x.dtype for x in half} == {torch.float16}


def test_a_changed_base_anchor_changes_the_anchors(ours):
    before = ours.grid_priors(SIZES[0], device='cpu')[0]
    ours.base_anchors[0] += 1
    after = ours.grid_priors(SIZES[0], device='cpu')[0]
    torch.testing.assert_close(after, before + 1)


def test_few_sizes_are_kept(ours, monkeypatch):
    monkeypatch.setattr(anchors, 'MOST_GRIDS', 2)
    sizes = [[(n, n), (n, n)] for n in range(1, 5)]
    for size in sizes:
        ours.grid_priors(size, device='cpu')
    assert len(anchors._grids[ours]) == 2


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_inference_keeps_nothing(ours, mode):
    with mode():
        made(ours, SIZES[0], PADS[0])
    assert ours not in anchors._grids
    assert ours not in anchors._flags
    assert not any(x.is_inference() for x in made(ours, SIZES[0], PADS[0]))


def test_copies_keep_nothing(ours):
    made(ours, SIZES[0], PADS[0])
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert other not in anchors._grids
        assert all(
            map(
                torch.equal,
                made(other, SIZES[0], PADS[0]),
                made(ours, SIZES[0], PADS[0]),
            )
        )
