"""Provides `mmcv._ext`, mmcv's compiled ops, where none are compiled.

Breaks: `import mmcv.ops`, hence mmdet and mmseg, with "No module named
'mmcv._ext'".
Why: mmcv-lite has no compiled ops, and the full mmcv of the toolboxes (2.1)
does not build on today's torch: its sources are C++17, torch's headers ask
for C++20.
Fix: a finder at the end of `sys.meta_path` provides `mmcv_ext` of this
package. A compiled extension takes precedence.
Remove when the toolboxes run with an mmcv that is built for today's torch.
"""

import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

EXTENSION = 'mmcv._ext'

logger = logging.getLogger('evmamba_mm')


def apply() -> None:
    """Registers the finder, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != EXTENSION:
            return None
        return spec_from_loader(fullname, _Loader())


class _Loader(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        from . import mmcv_ext

        module.__doc__ = mmcv_ext.__doc__
        vars(module).update(mmcv_ext.SERVED)
        # mmcv looks each name up when an op's file is imported, so every
        # name has to exist; those not served raise when they are called.
        module.__getattr__ = mmcv_ext.unserved_op
        logger.info(
            'mmcv has no compiled ops: torchvision and torch replace them '
            '(mmcv._ext)'
        )
