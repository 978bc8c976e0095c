"""Provides `mmcv._ext`, mmcv's compiled ops, where none are compiled.

Breaks: `import mmcv.ops`, hence mmdet and mmseg, with "No module named
'mmcv._ext'".
Why: mmcv-lite has no compiled ops, and the full mmcv of the toolboxes (2.1)
does not build on today's torch: its sources are C++17, torch's headers ask
for C++20.
Fix: `mmcv_ext` of this package stands in for it. A compiled extension takes
precedence.
Remove when the toolboxes run with an mmcv that is built for today's torch.
"""

import logging
from types import ModuleType

from .stand_in import stand_in

EXTENSION = 'mmcv._ext'

logger = logging.getLogger('evmamba_mm')


def apply() -> None:
    """Registers the module, once."""
    stand_in(EXTENSION, _fill)


def _fill(module: ModuleType) -> None:
    from . import mmcv_ext

    module.__doc__ = mmcv_ext.__doc__
    vars(module).update(mmcv_ext.SERVED)
    # mmcv looks each name up when an op's file is imported, so every name
    # has to exist; those not served raise when they are called.
    module.__getattr__ = mmcv_ext.unserved_op
    logger.info(
        'mmcv has no compiled ops: torchvision and torch replace them '
        '(mmcv._ext)'
    )
