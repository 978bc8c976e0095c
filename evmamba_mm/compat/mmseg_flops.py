"""Lets mmseg's tools/analysis_tools/get_flops.py run.

Breaks: it ends with '"input_shape" and "inputs" cannot be both set.'
Why: mmseg 1.2 gives mmengine's counter an image and its shape, and mmengine
takes one of them.
Fix: drop the shape where there is an image.
Remove when a release of mmseg gives one of them.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .after_import import after_import

_MARK = '_takes_image_and_shape'


def apply() -> None:
    """Makes the fix in mmengine.analysis, once that is imported."""
    after_import('mmengine.analysis', _mend)


def _mend(module: ModuleType) -> None:
    count = module.get_model_complexity_info
    if not hasattr(count, _MARK):
        module.get_model_complexity_info = _prefer_image(count)


def _prefer_image(count: Callable) -> Callable:
    @functools.wraps(count)
    def get_model_complexity_info(
        model: Any,
        input_shape: tuple | None = None,
        inputs: Any = None,
        show_table: bool = True,
        show_arch: bool = True,
    ) -> dict[str, Any]:
        if inputs is not None:
            input_shape = None
        return count(model, input_shape, inputs, show_table, show_arch)

    setattr(get_model_complexity_info, _MARK, True)
    return get_model_complexity_info
