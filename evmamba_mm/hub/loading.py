"""Teaches mmengine's loader released files and names of released weights.

Everything that mmengine and the toolboxes load comes by way of
``CheckpointLoader``: ``init_cfg``, ``load_from``, mmpretrain's ``get_model``
and the inferencers.
"""

import functools
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.dist import barrier
from mmengine.runner.checkpoint import CheckpointLoader

from ..checkpoint import convert_released, is_released
from ..compat.checkpoint_files import load_from_http, load_from_local

SCHEME = 'evmamba://'

_logger = logging.getLogger('evmamba_mm')


def register() -> None:
    """Registers the loaders of files, of URLs and of ``evmamba://``."""
    register_scheme = CheckpointLoader.register_scheme
    register_scheme('', _translating(load_from_local), force=True)
    register_scheme(
        ('http://', 'https://'), _translating(load_from_http), force=True
    )
    register_scheme(SCHEME, load_from_released, force=True)


def load_from_released(
    filename: str, map_location: str | Callable | None = None
) -> Mapping[str, Any]:
    """Load ``evmamba://tiny``, ``evmamba://small`` or ``evmamba://base``.

    The first call fetches and converts the file; see
    :func:`evmamba_mm.apis.fetch_released`.

    Raises:
        ValueError: If the name is another, or the file cannot be fetched.
    """
    from ..apis.fetch import fetch_released

    arch = filename.removeprefix(SCHEME)
    # One process of a machine fetches, the others find the file there.
    if os.environ.get('LOCAL_RANK', '0') == '0':
        fetch_released(arch)
    barrier()
    path = str(fetch_released(arch))
    return translate(load_from_local(path, map_location), path)


def _translating(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def load_and_translate(
        filename: str, map_location: str | Callable | None = None
    ) -> Any:
        return translate(load(filename, map_location), filename)

    return load_and_translate


def translate(loaded: Any, name: str) -> Any:
    """A loaded file as the toolboxes store a classifier, if it is released.

    Any other file is returned as it is.

    Args:
        loaded: What ``torch.load`` returns.
        name: Name of the file, for the log.
    """
    if not isinstance(loaded, Mapping):
        return loaded
    weights = loaded.get('state_dict', loaded.get('model', loaded))
    if not isinstance(weights, Mapping) or not is_released(weights):
        return loaded
    converted = convert_released(weights)
    file = name.rpartition('/')[2]
    _say_once(file, converted.model)
    meta = dict(model=converted.model, source=file)
    return dict(meta=meta, state_dict=converted.state_dict)


@functools.cache
def _say_once(file: str, model: str) -> None:
    _logger.info(
        '%s has the layout of the released %s: its keys are translated',
        file,
        model,
    )
