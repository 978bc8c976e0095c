"""Illegal arguments, all of the script's and keywords that are misspelt."""

import functools
import inspect
import re

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

from evmamba_mm import CUDAGraphHook, EfficientVMamba, layers, ops
from evmamba_mm.arguments import CHECKS, SYNONYMS
from evmamba_mm.backbones import Vim, VMamba

from .arguments import TARGETS, outcome, tries


@pytest.mark.parametrize('target', TARGETS, ids=lambda target: target.name)
def test_every_illegal_value_is_named(target):
    found = {
        f'{name}={value!r}': outcome(target, name, value)
        for other, name, value in tries()
        if other is target
    }
    assert found
    assert {k: v for k, v in found.items() if v != 'clear'} == {}


@pytest.mark.parametrize(
    ('make', 'name', 'hint'),
    [
        (EfficientVMamba, 'in_channel', "did you mean 'in_channels'?"),
        (EfficientVMamba, 'pretrained', "use init_cfg=dict(type='Pretrained'"),
        (EfficientVMamba, 'drop_path', 'use drop_path_rate'),
        (EfficientVMamba, 'in_chans', 'use in_channels'),
        (EfficientVMamba, 'depths', 'use arch=dict(...)'),
        (EfficientVMamba, 'window_size', 'use step_size'),
        (EfficientVMamba, 'use_checkpoint', 'use with_cp'),
        (EfficientVMamba, 'zzz', 'legal are arch, in_channels, out_indices'),
        (VMamba, 'window_size', 'legal are arch, '),
        (Vim, 'pretrained', 'use init_cfg='),
        (CUDAGraphHook, 'repeat', "did you mean 'repeats'?"),
    ],
)
def test_an_unknown_keyword_is_told_the_right_one(make, name, hint):
    message = f'{make.__name__} has no argument {name!r}; {hint}'
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**{name: 'x'})


@pytest.mark.parametrize('kind', [np.int64, np.uint8])
def test_integers_of_numpy_are_integers(kind):
    arch = dict(channels=[kind(16)], depths=[kind(1)])
    numbers = dict(in_channels=3, step_size=2, d_state=4, out_indices=0)
    numbers = {name: kind(value) for name, value in numbers.items()}
    image = torch.rand(1, 3, 32, 32)
    (features,) = EfficientVMamba(arch, block_types=['evss'], **numbers)(image)
    assert features.shape == (1, 16, 8, 8)


def test_the_registry_passes_the_suggestion_on():
    with pytest.raises(ValueError, match='use drop_path_rate'):
        MODELS.build(dict(type='EfficientVMamba', drop_path=0.1))


def test_every_synonym_means_an_argument():
    known = {
        *inspect.signature(EfficientVMamba).parameters,
        *inspect.signature(Vim).parameters,
        *CHECKS,
    }
    for meant in SYNONYMS.values():
        assert re.match(r'\w+', meant).group() in known


def test_python_says_which_argument_is_missing():
    with pytest.raises(TypeError, match="missing.*'channels'"):
        layers.ES2D()


@pytest.mark.parametrize('backend', ['naive', 'torch', 'numba'])
@pytest.mark.parametrize('softplus', [True, False])
@pytest.mark.parametrize('delta', [0.1, 2.0, 25.0, 40.0, 90.0])
def test_growing_states_are_right_or_not_finite(delta, softplus, backend):
    """A number that fp32 can hold is right, and no other is finite."""
    if backend == 'numba':
        pytest.importorskip('numba')
    u = torch.zeros(1, 2, 60)
    u[..., 55:] = 1
    arguments = dict(
        u=u,
        delta=torch.full_like(u, delta),
        A=torch.tensor([[1.5, -1.0], [0.2, 3.0]]),
        B=torch.ones(1, 1, 2, 60),
        C=torch.ones(1, 1, 2, 60),
    )
    if not softplus:
        # Decay rates and step sizes of both signs.
        arguments['delta'][:, 0] *= -1
    scan = functools.partial(ops.selective_scan, delta_softplus=softplus)
    y = scan(**arguments, backend=backend)
    exact = {k: v.double() for k, v in arguments.items()}
    expected = scan(**exact, backend='naive').float()
    finite = y.isfinite()
    torch.testing.assert_close(y[finite], expected[finite], rtol=3e-5, atol=0)
    # Above this one decay alone overflows.
    if delta <= 25:
        assert torch.equal(finite, expected.isfinite())


@pytest.mark.parametrize('backend', ['naive', 'torch', 'numba'])
@pytest.mark.parametrize('name', ['u', 'delta', 'A', 'B', 'C'])
def test_nan_is_never_hidden(backend, name):
    if backend == 'numba':
        pytest.importorskip('numba')
    arguments = dict(
        u=torch.ones(1, 2, 9),
        delta=torch.ones(1, 2, 9),
        A=-torch.ones(2, 2),
        B=torch.ones(1, 1, 2, 9),
        C=torch.ones(1, 1, 2, 9),
    )
    arguments[name].view(-1)[1] = torch.nan
    y = ops.selective_scan(**arguments, backend=backend)
    expected = ops.selective_scan(**arguments, backend='naive')
    assert torch.equal(y.isnan(), expected.isnan())
