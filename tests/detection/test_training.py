"""Trainings with these parts and with mmdet's own have the same losses."""

import pytest
import torch

from ..configs.leaves import LEAVES
from ..configs.peer_leaves import PEERS, load
from ..hooks import train_detector

pytest.importorskip('mmdet', reason='mmdet is not installed')
HOSTS = {
    'VectorizedMaxIoUAssigner': 'MaxIoUAssigner',
    'CachedAnchorGenerator': 'AnchorGenerator',
}


def parts(config):
    """The settings of the anchors and of each assigner."""
    model = config.model
    if 'rpn_head' not in model:
        return [model.bbox_head.anchor_generator, model.train_cfg.assigner]
    stages = model.train_cfg
    return [
        model.rpn_head.anchor_generator,
        stages.rpn.assigner,
        stages.rcnn.assigner,
    ]


@pytest.mark.parametrize(
    'leaf', [x for x in LEAVES if LEAVES[x].parent.name == 'mmdet']
)
def test_every_config_has_them(leaf):
    found = [part.type for part in parts(load(leaf))]
    assert set(found) == set(HOSTS)
    assert len(found) == (2 if 'retinanet' in leaf else 3)


@pytest.mark.parametrize(
    'leaf', [x for x in PEERS if PEERS[x].parents[1].name == 'mmdet']
)
def test_peers_have_the_hosts(leaf):
    found = [part.type for part in parts(load(leaf))]
    assert set(found) == set(HOSTS.values())


@pytest.mark.skipif(
    torch.cuda.is_available(), reason='on a GPU, sums differ in their order'
)
@pytest.mark.parametrize('kind', train_detector.LEAVES)
def test_losses_are_the_hosts(kind, tmp_path):
    losses = []
    for name in ('ours', 'theirs'):
        config = train_detector.config(kind, tmp_path / name, [], 2)
        config.optim_wrapper.optimizer.lr = 1e-2
        if name == 'theirs':
            for part in parts(config):
                part.type = HOSTS[part.type]
        found, model = train_detector.train(config)
        losses.append(found)
        head = model.rpn_head if kind == 'mask-rcnn' else model.bbox_head
        ours = type(head.assigner).__name__ == 'VectorizedMaxIoUAssigner'
        assert ours == (name == 'ours')
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
