"""The part of a config whose first batch fails, with what it was given."""

import inspect
import sys
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, distributed, nn

from .checks import children
from .values import value_at

RUNNER = inspect.getfile(Runner)
LIBRARIES = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1]))
# Set to anything, it shows tracebacks.
TRACEBACK = 'EVMAMBA_TRACEBACK'
# Parts that need no type in a config.
TYPELESS = {
    'data_preprocessor': BaseDataPreprocessor,
    'model.data_preprocessor': BaseDataPreprocessor,
    'optim_wrapper': OptimWrapper,
}


def said_of(error: BaseException) -> str:
    """Return what an error says, in a line; a bare assertion's is its code."""
    # What a KeyError says is a key, or in the registries a sentence.
    said = error.args[0] if len(error.args) == 1 else error
    said = ' '.join(str(said).split())
    if isinstance(error, KeyError) and ' ' not in said:
        return f'there is no {said!r}'
    last = traceback.extract_tb(error.__traceback__)[-1]
    return textwrap.shorten(said or last.line or type(error).__name__, 400)


def of_user(error: BaseException) -> bool:
    """Whether the last line that ran is in no library and not ours."""
    return not _files(error)[-1].startswith(LIBRARIES)


def ran_user(error: BaseException) -> bool:
    """Whether the Runner came through a file of the user's own."""
    files = _files(error)
    ran = files[files.index(RUNNER) :] if RUNNER in files else files
    return not all(file.startswith(LIBRARIES) for file in ran)


def _files(error: BaseException) -> list[str]:
    files = [f.filename for f in traceback.extract_tb(error.__traceback__)]
    # Python's own modules that have no file begin so.
    return [file for file in files if not file.startswith('<')]


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
    first = next(i for i, each in enumerate(owners) if each is owner)
    shapes = shapes_given(frames[first]) if is_module else ''
    got = f'. Its input is {shapes}' if shapes else ''
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f'{" or ".join(parts)} ({type(owner).__name__}) fails: {said} '
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
        kind = str(node.get('type')) if isinstance(node, dict) else ''
        if kind.rpartition('.')[2] == type(owner).__name__:
            found[key] = node
        waiting += [(f'{key}.{end}', child) for end, child in children(node)]
    model = next((x for x in owners if isinstance(x, BaseModel)), nn.Module())
    names = [f'model.{k}' for k, m in model.named_modules() if m is owner]
    # Such as 'val' while a ValLoop runs.
    loops = [type(x).__name__ for x in owners if isinstance(x, BaseLoop)]
    splits = [loop.removesuffix('Loop').lower() for loop in loops]
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
