"""Changes after a block was checked; most stand in the other tests."""

import copy
import gc
import pickle
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils import swap_tensors

from evmamba_mm.fast import difference, snapshot, standard
from evmamba_mm.layers import ES2D

from .changes import Tagged, built, input_of, odd


def checked(kind='evss'):
    block = built(kind)
    assert difference(block, input_of(kind)) is None
    return block


@pytest.fixture
def full_checks(monkeypatch):
    """Counts the checks that a snapshot did not save."""
    seen, check = [], standard._check

    def counting(block, place):
        seen.append(block)
        return check(block, place)

    monkeypatch.setattr(standard, '_check', counting)
    return seen


def with_data(make):
    def change(block):
        weight = block.mixer.in_proj.weight
        weight.data = make(weight.data)

    return change


def swapped(make):
    def change(block):
        weight = block.mixer.in_proj.weight
        swap_tensors(weight, nn.Parameter(make(weight.detach())))

    return change


def reordered(block):
    children = block.conv_branch._modules
    children['0'] = children.pop('0')


def hooked_in_a_new_dict(block):
    block.se.act._forward_hooks = OrderedDict()
    assert difference(block, input_of('evss')) is None
    block.se.act.register_forward_hook(lambda m, args, y: odd(y))


def with_another_dict(block):
    block.se.act.__dict__ = vars(nn.GELU('tanh'))


def counter_in_half(block):
    norm = block.conv_branch[1]
    norm.num_batches_tracked = norm.num_batches_tracked.half()


# The change, and what it leaves to tell.
CHANGES = {
    'shape of the data': (
        with_data(lambda x: x[:, :4].clone()),
        'mixer.in_proj has a weight of shape (32, 4), not (32, 8)',
    ),
    'transposed data': (
        with_data(lambda x: x.t()),
        'mixer.in_proj has a weight of shape (8, 32), not (32, 8)',
    ),
    'dtype of the data': (
        with_data(torch.Tensor.double),
        'mixer.in_proj has its weight in torch.float64',
    ),
    'negated view': (
        with_data(torch._neg_view),
        'mixer.in_proj has a weight that is no ordinary tensor',
    ),
    'subclass': (
        swapped(lambda x: x.as_subclass(Tagged)),
        'mixer.in_proj has a weight that is no ordinary tensor',
    ),
    'layout': (
        swapped(torch.Tensor.to_sparse),
        'mixer.in_proj has a weight that is no ordinary tensor',
    ),
    'order of children': (
        reordered,
        "conv_branch has children ['1', '2', '3', '0'], not ['0', '1', '2', "
        "'3']",
    ),
    'hook in a new dict': (hooked_in_a_new_dict, 'se.act has a hook'),
    'another dict': (with_another_dict, "se.act has approximate='tanh'"),
    'parameter removed': (
        lambda block: setattr(block.norm, 'bias', None),
        'norm has no bias',
    ),
    'parameter added': (
        lambda block: setattr(
            block.mixer.in_proj, 'bias', nn.Parameter(torch.ones(32))
        ),
        'mixer.in_proj has a bias',
    ),
    'child hidden': (
        lambda block: vars(block.se).update(act=odd),
        'se has an attribute that hides its act',
    ),
    'setting that is a tensor': (
        lambda block: setattr(
            block.se.norm, 'normalized_shape', torch.ones(2)
        ),
        'se.norm has normalized_shape=tensor',
    ),
    'counter': (counter_in_half, 'conv_branch.1 has its num_batches_tracked'),
}


@pytest.mark.parametrize('name', CHANGES)
def test_a_change_after_a_check_is_found(name):
    change, why = CHANGES[name]
    block = checked()
    change(block)
    assert difference(block, input_of('evss')).startswith(why)
    other = built('evss')
    change(other)
    assert difference(other, input_of('evss')).startswith(why)


@pytest.mark.parametrize(
    'owner,name',
    [
        (nn.Module, '_call_impl'),
        (nn.GELU, 'forward'),
        (ES2D, 'scan'),
        (nn.functional, 'linear'),
    ],
    ids=lambda x: getattr(x, '__name__', x),
)
def test_a_class_patched_after_a_check(monkeypatch, owner, name):
    block = checked()
    monkeypatch.setattr(owner, name, odd)
    why = f'{owner.__name__} has a patched {name}'
    assert difference(block, input_of('evss')) == why


def test_a_replaced_class_of_torch(monkeypatch):
    """A library may replace torch.nn.Linear for all that is built later."""

    class Linear(nn.Linear):
        def forward(self, x):
            return odd(super().forward(x))

    monkeypatch.setattr(nn, 'Linear', Linear)
    why = f'mixer.in_proj is a Linear of {__name__}, not a Linear'
    assert difference(built('evss'), input_of('evss')) == why


@pytest.mark.parametrize(
    'kind', ['evss', 'ss2d', 'inverted', 'stem', 'merging', 'norm']
)
def test_an_unchanged_block_is_checked_once(full_checks, kind):
    block = checked(kind)
    for _ in range(2):
        assert difference(block, input_of(kind)) is None
    assert len(full_checks) == 1


def test_other_weights_of_the_same_shape_need_no_check(full_checks):
    block = checked('inverted')
    for name, x in [*block.named_parameters(), *block.named_buffers()]:
        path, _, key = name.rpartition('.')
        setattr(block.get_submodule(path), key, copy.deepcopy(x))
    assert difference(block, input_of('inverted')) is None
    assert len(full_checks) == 1


def test_a_block_is_checked_again_in_another_mode(full_checks):
    block, x = checked(), input_of('evss')
    block.eval()
    assert difference(block, x) is None
    with torch.autocast(x.device.type, torch.bfloat16):
        assert difference(block, x.bfloat16()) is None
    assert 'has a weight' not in str(difference(block, x))
    assert 'in torch.float32' in difference(block, x.bfloat16())
    assert difference(block, x[:, :4]) == 'the input has shape (2, 4, 3, 5)'


def test_tied_weights_and_attributes_that_are_tensors():
    block, x = built('evss'), input_of('evss')
    block.se.norm.weight = block.norm.weight
    for _ in range(3):
        block.norm.seen = torch.ones(2)
        assert difference(block, x) is None
    block.se.norm.weight = nn.Parameter(torch.ones(4))
    assert difference(block, x).startswith('se.norm has a weight of shape')


def test_without_the_guards_of_torch(monkeypatch, full_checks):
    monkeypatch.setattr(snapshot, 'TensorGuards', None)
    block, x = checked(), input_of('evss')
    assert difference(block, x) is None
    assert len(full_checks) == 2
    assert snapshot._KEY not in vars(block)


@pytest.mark.parametrize(
    'copied',
    [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=['copy', 'deepcopy', 'pickle'],
)
def test_a_copy_is_checked_by_itself(copied):
    block, x = checked(), input_of('evss')
    other = copied(block)
    assert other.state_dict().keys() == block.state_dict().keys()
    assert difference(other, x) is None
    other.forward = odd
    assert difference(other, x) == 'the block has a patched forward'
    assert difference(block, x) is None


def test_a_snapshot_keeps_no_block_alive():
    block = checked()
    block.norm.weight.register_hook(lambda gradient, block=block: gradient)
    assert difference(block, input_of('evss')) is None
    gone = weakref.ref(block)
    del block
    gc.collect()
    assert gone() is None


def test_a_deleted_block_frees_its_memory_at_once():
    block = checked()
    block.eval()
    assert difference(block, input_of('evss')) is None
    gone = weakref.ref(block), weakref.ref(block.norm)
    gc.disable()
    try:
        del block
        assert [x() for x in gone] == [None, None]
    finally:
        gc.enable()
