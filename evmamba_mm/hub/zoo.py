"""Makes the toolboxes find the configs of this package by name.

mmpretrain's ModelHub gets the names of the classifiers. mmengine's
inferencers, which mmdet and mmseg use, look for a name that they do not know
among ours. Configs can inherit: ``_base_ = 'evmamba_mm::mmdet/NAME.py'``.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import load

from ..compat import after_import

PACKAGE = Path(__file__).parents[1]


def root() -> Path | None:
    """The folder of configs/ and model-index.yml, None if there is none.

    It is ``.mim`` of an installed package and the folder of a checkout.
    """
    for folder in (PACKAGE / '.mim', PACKAGE.parent):
        if (folder / 'model-index.yml').is_file():
            return folder
    return None


def register() -> None:
    """Registers the names, in a toolbox once it is imported."""
    if root() is None:
        return
    MODULE2PACKAGE.setdefault('evmamba_mm', 'evmamba_mm')
    after_import('mmpretrain.apis.model', _register_classifiers)
    after_import('mmengine.infer.infer', _extend_inferencers)


def _register_classifiers(module: ModuleType) -> None:
    folder = root()
    index = folder / 'configs' / 'mmpretrain' / 'metafile.yml'
    hub = module.ModelHub
    if not hub.has(load(index)['Models'][0]['Name'].lower()):
        hub.register_model_index(index, config_prefix=folder)


def _extend_inferencers(module: ModuleType) -> None:
    # mmengine has no public way to add names.
    inferencer = module.BaseInferencer
    known = inferencer._load_model_from_metafile
    if not hasattr(known, '__wrapped__'):
        inferencer._load_model_from_metafile = _or_ours(known)


def _or_ours(find: Callable) -> Callable:
    @functools.wraps(find)
    def find_or_ours(self: Any, model: str) -> tuple[Config, str | None]:
        for entry in entries(self.scope):
            if entry['Name'].lower() == model.lower():
                config = Config.fromfile(root() / entry['Config'])
                return config, entry['Weights']
        return find(self, model)

    return find_or_ours


def entries(toolbox: str | None) -> list[dict[str, Any]]:
    """What the metafile says of each config for a toolbox, by its scope."""
    path = root() / 'configs' / str(toolbox) / 'metafile.yml'
    return load(path)['Models'] if path.is_file() else []
