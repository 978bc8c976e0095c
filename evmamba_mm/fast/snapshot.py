"""Tells whether a block is as it was when it was last checked."""

import weakref
from itertools import chain

import torch
from torch import nn

try:
    # What torch.compile asks before it runs what it has compiled.
    from torch._C._dynamo.guards import TensorGuards

    TensorGuards(dynamic_dims_sizes=[], dynamic_dims_strides=[])
except (ImportError, TypeError):
    # Then there are no snapshots: each call checks all of a block.
    TensorGuards = None

# Each block keeps its own. Kept elsewhere, a snapshot would keep alive a block
# that one of its tensors refers to, as in a hook.
_KEY = '_fast_path_snapshot'


class _Snapshot:
    """The state of modules without hooks, the first of which keeps it.

    It does not refer to that one: a deleted model frees its memory at once.
    """

    def __init__(
        self, modules: list[nn.Module], place: tuple, sizes: list[int]
    ) -> None:
        self.block = weakref.ref(modules[0])
        self.below = modules[1:]
        self.place = place
        self.sizes = sizes
        self.kinds = [*map(type, modules)]
        self.attributes = [dict(vars(module)) for module in modules]
        self.attributes[0].pop(_KEY, None)
        self.hooks = [
            hooks
            for m in modules
            for hooks in (
                *(m._forward_hooks, m._forward_pre_hooks),
                *(m._backward_hooks, m._backward_pre_hooks),
            )
        ]
        tables = (t for m in modules for t in (m._parameters, m._buffers))
        self.tables = [table for table in tables if table]
        self.families = [m._modules for m in modules if m._modules]
        self.state, tensors = self.read()
        self.guards = TensorGuards(
            *tensors,
            dynamic_dims_sizes=[list(x.shape) for x in tensors],
            dynamic_dims_strides=[list(x.stride()) for x in tensors],
        )

    def read(self) -> tuple[tuple[list, list, list], list[torch.Tensor]]:
        """Names, children and which tensors are None; the other tensors."""
        names = [*chain.from_iterable(self.tables + self.families)]
        children = [*chain.from_iterable(map(dict.values, self.families))]
        tensors = [*chain.from_iterable(map(dict.values, self.tables))]
        absent = [x is None for x in tensors]
        present = [x for x in tensors if x is not None]
        return (names, children, absent), present

    def __reduce__(self) -> tuple[type, tuple]:
        # Copies and pickles of the block have None in its place.
        return type(None), ()


def take_snapshot(
    modules: list[nn.Module], place: tuple, sizes: list[int]
) -> None:
    """Note in a block that it has passed a check.

    Args:
        modules: The block, then all below that were checked, without hooks.
        place: What its tensors were checked for.
        sizes: What :func:`unchanged` shall return.
    """
    if TensorGuards is not None:
        vars(modules[0])[_KEY] = _Snapshot(modules, place, sizes)


def unchanged(block: nn.Module, place: tuple) -> list[int] | None:
    """The sizes of a block's snapshot, if the check would pass again.

    Args:
        block: That may have a snapshot.
        place: What its tensors have to be checked for.
    """
    own = vars(block).copy()
    seen = own.pop(_KEY, None)
    # A shallow copy has the snapshot of the other block.
    if seen is None or seen.block() is not block or any(seen.hooks):
        return None
    try:
        same = [own, *map(vars, seen.below)] == seen.attributes
    except (RuntimeError, TypeError, ValueError):
        # An attribute is another tensor or array than before.
        return None
    state, tensors = seen.read()
    same = (
        same
        and place == seen.place
        and [type(block), *map(type, seen.below)] == seen.kinds
        and state == seen.state
        and seen.guards.check(*tensors)
    )
    return seen.sizes if same else None
