"""Says what is wrong with a checkpoint's file, and reads safetensors.

Breaks: a web page, a truncated or an empty file ends in torch's traceback,
which advises loading without safety; a file with changed bytes loads; what
comes from an address runs code, for `torch.hub` loads without safety; and
safetensors do not load.
Fix: register loaders of local files and of addresses in place of mmengine's,
by its own `register_scheme`, which read through `weight_files`.
Remove when mmengine's loaders do all this.
"""

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.runner import checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from ..weight_files import BrokenWeightsError, read_weights
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
