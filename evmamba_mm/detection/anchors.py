"""Anchors of the few sizes that a training with graphs has."""

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from torch import Tensor

from ..ops.tracing import is_traced

# At 800x1344 with five levels, anchors take 4.3 MB and flags 0.3 MB.
MOST_GRIDS, MOST_FLAGS = 12, 128

# Beside the generators, so that their copies and pickles have no tensors.
_grids, _flags = weakref.WeakKeyDictionary(), weakref.WeakKeyDictionary()


class CachedAnchorGenerator(AnchorGenerator):
    """mmdet's 'AnchorGenerator', which keeps its anchors while it trains.

    The host's makes the same anchors in every iteration, and copies the base
    anchors to the GPU for that. No caller may change anchors in place.
    """

    def grid_priors(
        self,
        featmap_sizes: Sequence[tuple[int, int]],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = 'cuda',
    ) -> list[Tensor]:
        """Return the anchors (N, 4) of each level, for (height, width)."""
        make = functools.partial(
            super().grid_priors, featmap_sizes, dtype, device
        )
        # Boxes of mmdet's own type have methods that change them in place.
        if self.use_box_type or not _may_keep():
            return make()
        base = [anchors.tolist() for anchors in self.base_anchors]
        key = f'{featmap_sizes} {dtype} {device} {self.strides} {base}'
        kept = _grids.setdefault(self, OrderedDict())
        return _recent(kept, MOST_GRIDS, key, make)

    def valid_flags(
        self,
        featmap_sizes: Sequence[tuple[int, int]],
        pad_shape: tuple[int, ...],
        device: torch.device | str = 'cuda',
    ) -> list[Tensor]:
        """Return which anchors (N,) of each level lie in the padded image."""
        make = functools.partial(
            super().valid_flags, featmap_sizes, pad_shape, device
        )
        if not _may_keep():
            return make()
        counts = self.num_base_priors
        key = f'{featmap_sizes} {pad_shape} {device} {self.strides} {counts}'
        kept = _flags.setdefault(self, OrderedDict())
        return _recent(kept, MOST_FLAGS, key, make)


def _may_keep() -> bool:
    # Tensors of inference mode, a tracer or a graph serve no other call.
    if not torch.is_grad_enabled() or is_traced():
        return False
    cuda = torch.cuda
    return not (cuda.is_initialized() and cuda.is_current_stream_capturing())


def _recent(
    kept: OrderedDict[Hashable, list[Tensor]],
    most: int,
    key: Hashable,
    make: Callable[[], list[Tensor]],
) -> list[Tensor]:
    """Return what was made for a key, and forget the oldest key."""
    if key not in kept:
        kept[key] = make()
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)
    return list(kept[key])
