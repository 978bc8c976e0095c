"""The part of a config whose first batch fails, with what it was given."""

import textwrap
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop
from torch import Tensor, distributed, nn
from torch.utils.data.dataloader import _BaseDataLoaderIter

from ..own_files import WORKER
from .checks import TRACEBACK, children
from .kinds import type_name
from .values import SPLITS, value_at

# Parts that need no type in a config.
TYPELESS = {
    'data_preprocessor': BaseDataPreprocessor,
    'model.data_preprocessor': BaseDataPreprocessor,
    'optim_wrapper': OptimWrapper,
    **{f'{split}_dataloader': _BaseDataLoaderIter for split in SPLITS},
}


def said_of(error: BaseException) -> str:
    """Return what an error says, in a line; a bare assertion's is its code."""
    # What a KeyError says is a key, or in the registries a sentence.
    said = str(error.args[0] if len(error.args) == 1 else error)
    # A worker's message begins with its calls.
    said = said.strip().splitlines()[-1] if WORKER.match(said) else said
    said = ' '.join(said.split())
    if isinstance(error, KeyError) and ' ' not in said:
        return f'there is no {said!r}'
    last = traceback.extract_tb(error.__traceback__)[-1]
    return textwrap.shorten(said or last.line or type(error).__name__, 400)


def failed_part(error: BaseException, cfg: Config, said: str) -> str | None:
    """Say which part of a config raised an error before a batch came through.

    A later error is not the config's, and one that lies in calls of a user's
    own files has to show them.

    Args:
        error: What was raised while the Runner ran.
        cfg: The Runner's config.
        said: What the error says.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    # CUDA tells of its errors later, elsewhere.
    if said.startswith('CUDA error') or any(map(is_late, frames)):
        return None
    # The Runner raises what a hook has raised anew.
    hook = frames[-1].f_code.co_name == 'call_hook'
    owners = [frame.f_locals.get('self') for frame in frames]
    owners += [frames[-1].f_locals.get('hook')] if hook else []
    found = ((x, parts_of(x, owners, cfg)) for x in reversed(owners))
    owner, parts = next((pair for pair in found if pair[1]), (None, {}))
    is_module = isinstance(owner, nn.Module)
    # It may be about another process.
    lost = isinstance(error, RuntimeError) and distributed.is_initialized()
    if not parts or (lost and not is_module):
        return None
    settings = [
        f'{key}={value!r}'
        for key, value in next(iter(parts.values())).items()
        if key not in ('type', '_scope_')
        and not isinstance(value, Mapping)
        and len(repr(value)) < 60
    ]
    has = f'. It has {", ".join(settings)}' if settings else ''
    name = type(owner).__name__
    if isinstance(owner, _BaseDataLoaderIter):
        name = 'DataLoader'
    first = next(i for i, each in enumerate(owners) if each is owner)
    shapes = shapes_given(frames[first]) if is_module else ''
    got = f'. Its input is {shapes}' if shapes else ''
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f'{" or ".join(parts)} ({name}) fails: {said} '
        f'({Path(last.filename).name}, line {last.lineno}; {TRACEBACK}=1 '
        f'shows the calls){has}{got}'
    )


def is_late(frame: Any) -> bool:
    """Whether a loop has had a batch before."""
    loop = frame.f_locals.get('self')
    if frame.f_code.co_name != 'run_iter' or not isinstance(loop, BaseLoop):
        return False
    return frame.f_locals.get('idx', getattr(loop, '_iter', 0)) > 0


def parts_of(
    owner: object, owners: Sequence[object], cfg: Config
) -> dict[str, Mapping]:
    """Return configs, by their keys, that an object may be built from.

    Args:
        owner: The object.
        owners: Objects whose methods are running, with the model's.
        cfg: The whole config.
    """
    found, waiting = {}, [*children(cfg._cfg_dict)]
    for key, kind in TYPELESS.items():
        part = value_at(cfg, key)
        if isinstance(owner, kind) and isinstance(part, Mapping):
            found[key] = part
    while waiting:
        key, node = waiting.pop(0)
        if isinstance(node, dict) and type_name(node) == type(owner).__name__:
            found[key] = node
        waiting += [(f'{key}.{end}', child) for end, child in children(node)]
    model = next((x for x in owners if isinstance(x, BaseModel)), nn.Module())
    names = [f'model.{k}' for k, m in model.named_modules() if m is owner]
    # Such as 'val' while a ValLoop runs.
    loops = [type(x).__name__ for x in owners if isinstance(x, BaseLoop)]
    splits = [
        split
        for split in SPLITS
        if any(loop.lower().endswith(f'{split}loop') for loop in loops)
    ]
    names += [k for k in found if k.partition('_')[0] in splits]
    return {k: found[k] for k in names if k in found} or found


def shapes_given(frame: Any) -> str:
    """Return the shapes of the tensors in the first argument of a method."""
    _, *names = frame.f_code.co_varnames
    waiting, shapes = [frame.f_locals.get(names[0]) if names else None], {}
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, Tensor):
            shapes['x'.join(map(str, node.shape))] = True
        waiting[:0] = [child for _, child in children(node)]
    return ', '.join(shapes)
