import importlib

import pytest
import torch

from ..scan_cases import relative_error
from .gated_cases import (
    FIXED,
    FLOAT,
    GATES,
    MAPS,
    block_arguments,
    op,
    two_ops,
)
from .kernel_cases import results

# The function has the name of its file.
MODULE = importlib.import_module('evmamba_mm.ops.fused.gated_residual')


def applied(monkeypatch):
    """Whether the kernels with gradients run, a list that grows."""
    calls, apply = [], MODULE._GatedResidual.apply
    monkeypatch.setattr(
        MODULE._GatedResidual,
        'apply',
        lambda *a: calls.append(1) or apply(*a),
    )
    return calls


def launched(monkeypatch):
    """Names of the kernels that run, a list that grows."""
    names = []
    for name in (
        'gated_residual',
        'gates_backward',
        'pooled_gates',
        'pooled_norm',
        'scale_add',
    ):
        room = importlib.import_module(f'evmamba_mm.ops.fused.{name}_triton')

        def noting(kernel, *arguments, launch=room.launch, **options):
            names.append(kernel.fn.__name__)
            launch(kernel, *arguments, **options)

        monkeypatch.setattr(room, 'launch', noting)
    return names


@pytest.mark.parametrize(
    'wanted',
    [
        ('residual',),
        ('a',),
        ('b', 'residual'),
        ('a', 'b'),
        ('norm_weight',),
        ('expand_bias', 'reduce_weight'),
        ('residual', *GATES),
    ],
    ids='-'.join,
)
def test_gradients_of_some(wanted, device, monkeypatch):
    arguments = block_arguments(device=device)
    expected = results(op, arguments, 'triton', FLOAT, FIXED)
    names = launched(monkeypatch)
    fixed = tuple(name for name in arguments if name not in wanted)
    values = results(op, arguments, 'triton', FLOAT, fixed)
    assert values.keys() == {'output', *wanted}
    for name, value in values.items():
        assert torch.equal(value, expected[name]), name
    backward = names[names.index('_forward_kernel') + 1 :]
    sums = ['_sum_kernel', '_gates_kernel']
    assert backward == [
        *(sums if wanted != ('residual',) else []),
        *(['_parameters_kernel'] if {*wanted} & {*GATES} else []),
        *(['_maps_kernel'] if {*wanted} & {'a', 'b'} else []),
    ]


def test_residual_gets_the_gradient_itself(device):
    arguments = block_arguments(device=device)
    arguments['residual'].requires_grad_()
    y = op(**arguments, backend='triton')
    dy = torch.ones_like(y)
    (gradient,) = torch.autograd.grad(y, arguments['residual'], dy)
    assert gradient.data_ptr() == dy.data_ptr()


def kept_bytes(function, arguments):
    """Of all memory that waits for a backward."""
    kept = {}

    def keep(x):
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    leaves = {
        name: x.requires_grad_(name not in FIXED)
        for name, x in arguments.items()
    }
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        y = function(**leaves, backend='triton')
    del y
    return sum(kept.values())


def test_no_more_is_kept_than_by_two_ops(device):
    arguments = block_arguments((4, 5, 7, 48), 6, torch.bfloat16, device)
    with torch.autocast(device, torch.bfloat16):
        once = kept_bytes(op, arguments)
        twice = kept_bytes(two_ops, arguments)
    # With the parameters, of which two ops keep casts that are small as well.
    parameters = sum(arguments[name].nbytes for name in GATES)
    assert once <= twice + parameters
    maps = arguments['a'].nbytes + arguments['b'].nbytes
    assert once - maps - parameters < 4 * 4 * 2 * 4 * 48


def test_without_gradients_the_parts_run(device, monkeypatch):
    calls = applied(monkeypatch)
    arguments = block_arguments(device=device)
    expected = op(**arguments, backend='triton')
    assert calls == [1]
    with torch.no_grad():
        value = op(**arguments, backend='triton')
        assert torch.equal(value, two_ops(**arguments, backend='triton'))
    assert calls == [1]
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize('name', MAPS)
def test_double_precision_runs_by_torch(name, device, monkeypatch):
    calls = applied(monkeypatch)
    arguments = block_arguments(device=device)
    arguments[name] = arguments[name].double()
    backend = 'auto' if device == 'cuda' else 'torch'
    op(**arguments, backend=backend)
    assert calls == []


def test_too_many_weights_for_a_program_run_as_two_ops(device, monkeypatch):
    calls = applied(monkeypatch)
    arguments = block_arguments((1, 2, 3, 384), 48, FLOAT, device)
    value = op(**arguments, backend='triton')
    assert calls == []
    assert torch.equal(value, two_ops(**arguments, backend='triton'))


def test_compiles_into_one_graph(device, monkeypatch):
    calls = applied(monkeypatch)
    arguments = block_arguments(device=device)
    compiled = torch.compile(op, fullgraph=True, backend='aot_eager')
    values = results(compiled, arguments, 'triton', FLOAT, FIXED)
    assert calls == []
    expected = results(op, arguments, 'triton', FLOAT, FIXED)
    for name, value in values.items():
        assert relative_error(value, expected[name]) < 1e-5, name


def test_second_derivative_is_refused(device):
    arguments = block_arguments(device=device)
    a = arguments['a'].requires_grad_()
    y = op(**arguments, backend='triton')
    (gradient,) = torch.autograd.grad(y.square().sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match='differentiate twice'):
        gradient.sum().backward()


@pytest.mark.parametrize('backend', ['torch', 'triton'])
@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('residual', 'residual must have shape'),
        ('b', 'maps must have one shape'),
        ('norm_weight', 'weight must have shape'),
        ('reduce_bias', 'reduce_bias must have shape'),
        ('expand_weight', 'expand_weight must have shape'),
        ('scale', 'scale must have shape'),
    ],
)
def test_wrong_shape_is_named(name, message, backend, device):
    arguments = block_arguments(device=device)
    arguments[name] = arguments[name][:1]
    with pytest.raises(ValueError, match=message):
        op(**arguments, backend=backend)
