"""Says what is wrong with a checkpoint's file, and reads safetensors.

Breaks: a web page, a truncated or an empty file ends in torch's traceback,
which advises loading without safety; a file with changed bytes loads; what
comes from an address runs code, for `torch.hub` loads without safety;
safetensors do not load; and integers or complex numbers are cast to weights.
Fix: register loaders of local files and of addresses in place of mmengine's,
by its own `register_scheme`, which read through `weight_files`, and compare
dtypes before a state is loaded.
Remove when mmengine's loaders do all this.
"""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.runner import checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from ..weight_files import BrokenWeightsError, no_floats, read_weights
from . import safe_loading


def apply() -> None:
    """Makes mmengine read checkpoints by way of `weight_files`."""
    if checkpoint.load_from_http is load_from_http:
        return
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(
        ('http://', 'https://'), load_from_http, force=True
    )
    # The loaders of torchvision:// and open-mmlab:// call it by this name.
    checkpoint.load_from_http = load_from_http
    checkpoint.load_state_dict = _comparing_dtypes(checkpoint.load_state_dict)


def _comparing_dtypes(load: Callable) -> Callable:
    @functools.wraps(load)
    def load_state_dict(
        module: nn.Module,
        state_dict: Mapping[str, Any],
        strict: bool = False,
        logger: Any = None,
    ) -> None:
        found = no_floats(module.state_dict(), state_dict)
        if found:
            raise BrokenWeightsError(
                f'{len(found)} weights of the checkpoint are no real floating '
                f'numbers: {", ".join(found[:3])}'
            )
        load(module, state_dict, strict, logger)

    return load_state_dict


def load_from_local(filename: str, map_location: Any = None) -> dict:
    """Load a local file; the arguments are those of mmengine's loader."""
    return _read(os.path.expanduser(filename), map_location)


def load_from_http(
    filename: str,
    map_location: Any = None,
    model_dir: str | None = None,
    progress: bool = False,
) -> dict:
    """Fetch a file once into torch's folder of checkpoints, and load it.

    Args:
        filename: Address of the file.
        map_location: As torch.load takes it.
        model_dir: Folder to keep the file in.
        progress: Whether to show a bar.

    Raises:
        BrokenWeightsError: If it cannot be fetched or holds no weights.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir(), 'checkpoints'))
    target = folder / Path(urlparse(filename).path).name
    rank, world_size = get_dist_info()
    if rank == 0:
        _fetch(filename, target, progress)
    if world_size > 1:
        barrier()
        # Of a machine that shares no disk with the first one.
        _fetch(filename, target, progress)
    try:
        return _read(target, map_location)
    except BrokenWeightsError as error:
        raise BrokenWeightsError(
            f'{error} (it came from {filename}; delete it to fetch it again)'
        ) from error


def _read(path: str | Path, map_location: Any) -> dict:
    # A library that allows a type for one file removes it after that from the
    # list of all, as timm does with argparse.Namespace.
    safe_loading.apply()
    return read_weights(path, map_location)


def _fetch(address: str, target: Path, progress: bool) -> None:
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(address, str(target), progress=progress)
    except OSError as error:
        raise BrokenWeightsError(
            f'{address} could not be fetched: {error}'
        ) from error
