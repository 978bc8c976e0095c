"""Keeps mmpretrain importable beside a transformers newer than it knows.

Breaks: `import mmpretrain`, with "NoneType takes no arguments" (transformers
5, and 4.56 on) or "cannot import name 'GenerationMixin'" (4.52 on).
Why: mmpretrain 1.2 imports its multi-modal models if transformers is
installed, and these use names that transformers has removed since.
Fix: set mmpretrain's flag for multi-modal models to its value without
transformers. Building one of them (BLIP, OFA, ...) then reports a missing
dependency; all other models work.
Remove when an mmpretrain imports beside a current transformers.
"""

import logging
from importlib import metadata
from types import ModuleType

from mmengine.utils import digit_version

from .after_import import after_import

FLAG_MODULE = 'mmpretrain.utils.dependency'
FIRST_BROKEN = '4.52.0'

logger = logging.getLogger('evmamba_mm')


def apply() -> None:
    """Registers the hook, once; call it before importing mmpretrain."""
    after_import(FLAG_MODULE, _clear_flag)


def _broken_version() -> str | None:
    """The installed transformers version if mmpretrain fails with it."""
    try:
        version = metadata.version('transformers')
    except metadata.PackageNotFoundError:
        return None
    if digit_version(version) < digit_version(FIRST_BROKEN):
        return None
    return version


def _clear_flag(module: ModuleType) -> None:
    version = _broken_version()
    if version is None or not module.WITH_MULTIMODAL:
        return
    module.WITH_MULTIMODAL = False
    logger.warning(
        'mmpretrain does not work with transformers %s: its multi-modal '
        'models are disabled; to use them: pip install "transformers<%s"',
        version,
        FIRST_BROKEN.removesuffix('.0'),
    )
