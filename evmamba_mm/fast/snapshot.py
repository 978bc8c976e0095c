"""Tells whether a block is as it was when it was last checked."""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import nn

try:
    # What torch.compile asks before it runs what it has compiled.
    from torch._C._dynamo.guards import TensorGuards

    TensorGuards(dynamic_dims_sizes=[], dynamic_dims_strides=[])
except (ImportError, TypeError):
    # Without it there are no snapshots: each call checks everything.
    TensorGuards = None

# A block keeps its own snapshot. Held by anything else, one would keep alive
# each block that a hook of its tensors refers to.
_KEY = '_fast_path_snapshot'
_State = tuple[list, list, list]


class _Snapshot:
    """The state of the modules of a block, and what it was checked for.

    Copies and pickles of a block have None in its place.
    """

    def __init__(
        self, modules: list[nn.Module], place: tuple, sizes: tuple[int, int]
    ) -> None:
        self.modules = modules
        self.place = place
        self.sizes = sizes
        self.kinds = [*map(type, modules)]
        self.attributes = [dict(vars(module)) for module in modules]
        self.attributes[0][_KEY] = self
        self.hooks = [
            hooks
            for m in modules
            for hooks in (
                m._forward_hooks,
                m._forward_pre_hooks,
                m._backward_hooks,
                m._backward_pre_hooks,
            )
        ]
        tables = chain(*((m._parameters, m._buffers) for m in modules))
        self.tables = [table for table in tables if table]
        self.families = [m._modules for m in modules if m._modules]
        self.state, tensors = self.read()
        self.guards = TensorGuards(
            *tensors,
            dynamic_dims_sizes=[list(x.shape) for x in tensors],
            dynamic_dims_strides=[list(x.stride()) for x in tensors],
        )

    def read(self) -> tuple[_State, list[torch.Tensor]]:
        """Names, children and where no tensor is; and the tensors."""
        names = [*chain.from_iterable(self.tables + self.families)]
        children = [*chain.from_iterable(map(dict.values, self.families))]
        tensors = [*chain.from_iterable(map(dict.values, self.tables))]
        absent = [x is None for x in tensors]
        state = names, children, absent
        return state, [x for x in tensors if x is not None]

    def __reduce__(self) -> tuple[type, tuple]:
        return type(None), ()


def take_snapshot(
    modules: Iterable[nn.Module],
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    sizes: tuple[int, int],
) -> None:
    """Keep in a block that a check of it has passed.

    Args:
        modules: The block, then all modules below that were checked. They
            have no hooks.
        device: That its tensors were checked for.
        dtypes: That they were checked for.
        sizes: What :func:`unchanged` is to return.
    """
    modules = list(modules)
    if TensorGuards is not None:
        snapshot = _Snapshot(modules, (device, dtypes), sizes)
        vars(modules[0])[_KEY] = snapshot


def unchanged(
    block: nn.Module, device: torch.device, dtypes: Sequence[torch.dtype]
) -> tuple[int, int] | None:
    """The sizes of a block's snapshot if its check would pass again.

    Args:
        block: That may have a snapshot.
        device: To check its tensors for.
        dtypes: To check its tensors for.
    """
    seen = vars(block).get(_KEY)
    # A shallow copy has the snapshot of another block.
    if seen is None or seen.modules[0] is not block or any(seen.hooks):
        return None
    try:
        same = [*map(vars, seen.modules)] == seen.attributes
    except (RuntimeError, ValueError):
        # An attribute became a tensor or an array.
        return None
    state, tensors = seen.read()
    same = (
        same
        and seen.place == (device, dtypes)
        and [*map(type, seen.modules)] == seen.kinds
        and state == seen.state
        and seen.guards.check(*tensors)
    )
    return seen.sizes if same else None
