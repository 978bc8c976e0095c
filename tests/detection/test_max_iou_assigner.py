"""The same assignments as mmdet's, bit for bit."""

import inspect
import itertools

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

import evmamba_mm

pytest.importorskip('mmdet', reason='mmdet is not installed')

from mmdet.registry import TASK_UTILS

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
SETTINGS = {
    'rpn': dict(pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
    'retinanet': dict(pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
    'roi': dict(pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
    'band': dict(pos_iou_thr=0.6, neg_iou_thr=(0.1, 0.5), min_pos_iou=0.2),
    'list': dict(pos_iou_thr=0.6, neg_iou_thr=[0.1, 0.5]),
    'one-each': dict(
        pos_iou_thr=0.6, neg_iou_thr=0.3, gt_max_assign_all=False
    ),
    'no-low': dict(pos_iou_thr=0.5, neg_iou_thr=0.5, match_low_quality=False),
    'ignored': dict(
        pos_iou_thr=0.5,
        neg_iou_thr=0.4,
        ignore_iof_thr=0.5,
        gt_max_assign_all=False,
    ),
    'half': dict(
        pos_iou_thr=0.5,
        neg_iou_thr=0.4,
        iou_calculator=dict(type='BboxOverlaps2D', dtype='fp16'),
    ),
}
COUNTS = [(0, 40), (5, 0), (0, 0), (1, 1), (1, 300), (9, 300), (40, 25)]


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def build(kind, settings):
    return TASK_UTILS.build(dict(type=kind, **settings))


def boxes(count, grid, generator):
    """Boxes whose corners lie on a grid: the coarser it is, the more ties."""
    corners = 60 * torch.rand(count, 2, generator=generator)
    sizes = 4 + 40 * torch.rand(count, 2, generator=generator)
    made = torch.cat([corners, corners + sizes], dim=1)
    return ((made / grid).round() * grid if grid else made).to(DEVICE)


def case(number, truths, priors, grid):
    generator = torch.Generator().manual_seed(number)
    labels = torch.randint(80, (truths,), generator=generator).to(DEVICE)
    return (
        InstanceData(priors=boxes(priors, grid, generator)),
        InstanceData(bboxes=boxes(truths, grid, generator), labels=labels),
        InstanceData(bboxes=boxes(2, grid, generator)),
    )


@pytest.mark.parametrize('settings', SETTINGS.values(), ids=SETTINGS)
def test_assignments_are_the_hosts(settings):
    theirs = build('MaxIoUAssigner', settings)
    ours = build('VectorizedMaxIoUAssigner', settings)
    assert isinstance(ours, type(theirs))
    seen = set()
    for number, ((truths, priors), grid) in enumerate(
        itertools.product(COUNTS * 3, [0, 4, 12])
    ):
        given = case(number, truths, priors, grid)
        expected, found = theirs.assign(*given), ours.assign(*given)
        assert found.num_gts == expected.num_gts
        for name in ('gt_inds', 'max_overlaps', 'labels'):
            torch.testing.assert_close(
                getattr(found, name), getattr(expected, name), rtol=0, atol=0
            )
        seen |= set(expected.gt_inds.clamp(max=1).tolist())
    assert {0, 1} <= seen


def test_the_last_ground_truth_wins():
    overlaps = torch.tensor([[0.4, 0.4, 0.1], [0.4, 0.2, 0.0]])
    labels = torch.tensor([7, 8])
    found = {}
    for every in (True, False):
        assigner = build(
            'VectorizedMaxIoUAssigner',
            dict(SETTINGS['rpn'], gt_max_assign_all=every),
        )
        result = assigner.assign_wrt_overlaps(overlaps, labels)
        found[every] = result.gt_inds.tolist(), result.labels.tolist()
    assert found[True] == ([2, 1, 0], [8, 7, -1])
    assert found[False] == ([2, -1, 0], [8, -1, -1])


@pytest.mark.skipif(DEVICE == 'cpu', reason='there is no GPU to wait for')
@pytest.mark.parametrize('every', [True, False])
def test_it_never_waits_for_the_gpu(every):
    settings = dict(SETTINGS['rpn'], gt_max_assign_all=every)
    assigner = build('VectorizedMaxIoUAssigner', settings)
    overlaps = torch.rand(9, 3000, device=DEVICE)
    labels = torch.arange(9, device=DEVICE)
    torch.cuda.set_sync_debug_mode('error')
    try:
        assigner.assign_wrt_overlaps(overlaps, labels)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize(
    ('build', 'kind'),
    [
        (evmamba_mm.detection.vectorized_max_iou_assigner, 'MaxIoUAssigner'),
        (evmamba_mm.detection.cached_anchor_generator, 'AnchorGenerator'),
    ],
)
def test_arguments_are_the_hosts(build, kind):
    ours = inspect.signature(build).parameters.values()
    theirs = inspect.signature(TASK_UTILS.get(kind)).parameters.values()
    assert [(p.name, p.default) for p in ours] == [
        (p.name, p.default) for p in theirs
    ]
