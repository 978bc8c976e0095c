"""Mistakes in a config, in a line that names what cannot be built."""

import contextlib
import difflib
import traceback
from collections.abc import Iterator, Mapping

from mmengine.config import Config
from mmengine.registry import build_functions
from torch import distributed

from ..data_preprocessor import LabelError
from ..weight_files import BrokenWeightsError
from . import kinds
from .checks import TRACEBACK, leave
from .failing import failed_part, said_of
from .kinds import kinds_checked
from .origins import RUNNERS, of_user, own_call, raised_by, ran_user
from .samples import SampleError

MISTAKES = (
    *(AssertionError, AttributeError, IndexError, KeyError, TypeError),
    *(ValueError, ImportError, IsADirectoryError, RuntimeError),
)
# These have a line of their own.
KNOWN = (BrokenWeightsError, LabelError, SampleError)
BUILDERS = (build_functions.__file__, kinds.__file__)
# What tells one data set from another.
PLACES = ('data_root', 'ann_file', 'data_prefix')
# What the libraries' words mean there.
HINTS = {
    'epoch_length': 'the loader gives no batch: batch_size is above the '
    'number of images, or there are none',
    'need at least one array': 'no image is left: there is none, or none has '
    'an annotation of these classes',
    'None is not a callable': 'there is no such class',
    'must contain the key "type"': 'a part has no type, or its name is '
    'misspelt',
}


@contextlib.contextmanager
def mistakes_in_lines(
    cfg: Config | None = None, builds_all: bool = False
) -> Iterator[None]:
    """Exits with a line where a library refuses what a config asks for.

    An error in a file of the user's own keeps its traceback, as does one of
    the training itself once a batch has come through.

    Args:
        cfg: The config, where its model is run, too.
        builds_all: Whether nothing but the Runner is built, so that what it
            refuses is the config's, too.
    """
    try:
        with kinds_checked():
            yield
    except MISTAKES as error:
        cause = raised_by(error)
        if cause is not error and ran_user(cause):
            raise cause from None
        if isinstance(error, KNOWN) or of_user(error):
            raise
        said = said_of(error)
        for words, hint in HINTS.items():
            if words in said:
                said = f'{hint} ({said})'
        # Several processes wait for one another while they build.
        lost = isinstance(error, RuntimeError) and distributed.is_initialized()
        config = _last_built(error)
        if isinstance(error, ImportError) and error.__context__:
            # It has the module's name; not every error that hides it does.
            said = f'{said} ({" ".join(str(error.__context__).split())})'
        if config is None and isinstance(error, ImportError):
            config = _owner(error)
        if config is not None and not lost:
            said = _unregistered(error) or said
            said = f'{_named(config)} of the config cannot be built: {said}'
            own = own_call(error)
            said += f' ({own}; {TRACEBACK}=1 shows the calls)' if own else ''
        elif not lost and _of_runner(error, builds_all):
            said = f'the Runner refuses the config: {said}'
        elif cfg is None or ran_user(error):
            raise
        else:
            said = failed_part(error, cfg, said)
        if said is None:
            raise
        leave(error, said)


def _unregistered(error: BaseException) -> str | None:
    """Say which name a registry has not, and what is near to it."""
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    name, registry = map(last.f_locals.get, ('obj_type', 'registry'))
    if not (isinstance(error, KeyError) and isinstance(name, str)):
        return None
    known = [*registry.module_dict]
    known += getattr(registry.parent, 'module_dict', ())
    near = difflib.get_close_matches(name, known, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    where = f'{registry.scope}::{registry.name}'
    return f'{name} is not in the {where} registry{hint}'


def _named(config: Mapping) -> str:
    name = config['type']
    if not isinstance(name, str):
        name = getattr(name, '__name__', f'a part with type={name!r}')
    places = [f'{k}={config[k]!r}' for k in PLACES if config.get(k)]
    return f'{name} ({", ".join(places)})' if places else name


@contextlib.contextmanager
def unknown_score_in_a_line() -> Iterator[None]:
    """Exits with the names of the scores, which only a validation knows."""
    try:
        yield
    except KeyError as error:
        *_, (last, _) = traceback.walk_tb(error.__traceback__)
        scores = last.f_locals.get('metrics')
        saving = last.f_code.co_name == '_save_best_checkpoint'
        if not (saving and isinstance(scores, Mapping)):
            raise
        leave(
            error,
            f'default_hooks.checkpoint.save_best is {error.args[0]!r}; '
            f'the validation gives {", ".join(scores)}',
        )


def _last_built(error: BaseException) -> Mapping | None:
    """Return the config that was being built, the innermost."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        config = frame.f_locals.get('cfg')
        in_build = frame.f_code.co_filename in BUILDERS
        if in_build and isinstance(config, Mapping) and 'type' in config:
            found = config
    return found


def _owner(error: ImportError) -> Mapping | None:
    """Return which part it is that misses a package, as a config of it."""
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    owner = last.f_locals.get('self')
    return None if owner is None else dict(type=type(owner))


def _of_runner(error: BaseException, builds_all: bool) -> bool:
    """Whether it is about an argument of the Runner, a loader or a loop."""
    frames = traceback.extract_tb(error.__traceback__)
    if frames[-1].filename in RUNNERS:
        # There it is about the hook.
        return frames[-1].name != 'call_hook'
    builds = (
        f.filename in RUNNERS and f.name.startswith('build_') for f in frames
    )
    # One of torch is no refusal.
    return not isinstance(error, RuntimeError) and (builds_all or any(builds))
