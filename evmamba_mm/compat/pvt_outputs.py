"""Lets mmpretrain's classifiers use mmdet's PVT and PVTv2.

Breaks: a neck of mmpretrain, with 'neck inputs should be tuple'.
Why: these backbones of mmdet 3.3 return a list, all others a tuple.
Fix: return a tuple.
Remove when a release of mmdet does.
"""

import functools
from collections.abc import Callable
from types import ModuleType

from torch import Tensor, nn

from .after_import import after_import

_MARK = '_returns_a_tuple'


def apply() -> None:
    """Makes the fix in mmdet's PVT, once that is imported."""
    after_import('mmdet.models.backbones.pvt', _mend)


def _mend(module: ModuleType) -> None:
    backbone = module.PyramidVisionTransformer
    if not hasattr(backbone.forward, _MARK):
        backbone.forward = _as_tuple(backbone.forward)


def _as_tuple(run: Callable) -> Callable:
    @functools.wraps(run)
    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(run(self, x))

    setattr(forward, _MARK, True)
    return forward
