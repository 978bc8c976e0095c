"""What the log says of blocks that run their layers."""

import copy
import logging

import pytest
import torch
from torch import nn

import evmamba_mm.fast.run as fast_run
from evmamba_mm.fast import run_block
from evmamba_mm.layers import EVSSBlock

from .changes import DEVICE, built, image, input_of, model, put


@pytest.fixture
def lines(caplog):
    """What the package logs at the level of a training run."""
    logger = logging.getLogger('evmamba_mm')
    logger.addHandler(caplog.handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield lambda: [r.getMessage() for r in caplog.records]
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)


def test_a_change_is_logged_once_a_block(kernels, lines):
    net = model()
    for block in (net.stages[0][0], net.stages[1][0]):
        put(block, 'conv_branch.2', nn.ReLU())
    with torch.no_grad():
        for _ in range(2):
            net.eval()(image(1))
    told = [line for line in lines() if 'runs its layers' in line]
    assert told == 2 * [
        'EVSSBlock runs its layers, not the fused kernels: '
        'conv_branch.2 is a ReLU, not a GELU'
    ]


def test_an_unchanged_model_is_not_logged(kernels, lines):
    with torch.no_grad():
        model().eval()(image(1))
        net = model(fused=False).eval()
        net.stages[0][0].se.act = nn.ReLU()
        net(image(1))
    assert not [line for line in lines() if 'runs its layers' in line]


def test_a_copy_of_a_block_is_told_of_again(kernels, lines):
    block, x = built('norm'), input_of('norm')
    block.register_forward_hook(lambda m, args, y: None)
    [run_block(each, x) for each in (block, block, copy.deepcopy(block))]
    assert len(lines()) == 2


def test_another_reason_is_told_as_well(kernels, lines):
    block, x = built('norm'), input_of('norm')
    hooks = nn.modules.module.register_module_forward_hook(lambda *args: None)
    run_block(block, x)
    hooks.remove()
    block.register_forward_hook(lambda m, args, y: None)
    [run_block(block, x) for _ in range(2)]
    assert [line.partition(': ')[2] for line in lines()] == [
        'global module hooks are registered',
        'the block has a hook',
    ]


def test_a_stage_is_told_of_by_its_own_reason(kernels, lines):
    stage, x = nn.Sequential(built('norm')), input_of('norm')
    stage.register_forward_hook(lambda m, args, y: None)
    run_block(stage, x)
    (line,) = lines()
    assert line.startswith('Sequential runs its layers')
    assert line.endswith(': the block has a hook')


def test_a_block_that_is_gone_is_forgotten(kernels):
    block, x = EVSSBlock(8, nn.Identity()).to(DEVICE), input_of('evss')
    run_block(block, x)
    assert block in fast_run._told
    told = len(fast_run._told)
    del block
    assert len(fast_run._told) < told
