"""Mistakes in a config, in a line that names what cannot be built."""

import contextlib
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmengine.registry import build_functions
from mmengine.runner import Runner
from torch import distributed

from ..data_preprocessor import LabelError
from ..weight_files import BrokenWeightsError
from .samples import SampleError

MISTAKES = (
    *(AssertionError, AttributeError, KeyError, TypeError, ValueError),
    *(IsADirectoryError, RuntimeError),
)
# How the arguments of the Runner, its loaders and its loops are refused.
REFUSALS = (AssertionError, TypeError, ValueError)
# These have a line of their own.
KNOWN = (BrokenWeightsError, LabelError, SampleError)
RUNNER = inspect.getfile(Runner)
LIBRARIES = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1]))
# What tells one data set from another.
PLACES = ('data_root', 'ann_file', 'data_prefix')
# What the libraries' words mean there.
HINTS = {
    'epoch_length': 'the loader gives no batch: batch_size is above the '
    'number of images, or there are none',
    'need at least one array': 'no image is left: there is none, or none has '
    'an annotation of these classes',
    'None is not a callable': 'there is no such class',
}


@contextlib.contextmanager
def mistakes_in_lines(builds_all: bool = False) -> Iterator[None]:
    """Exits with a line where a library refuses what a config asks for.

    An error in a file of the user's own keeps its traceback, as does one of
    the training itself.

    Args:
        builds_all: Whether nothing but the Runner is built, so that what it
            refuses is the config's, too.
    """
    try:
        yield
    except MISTAKES as error:
        config = _last_built(error)
        # Several processes wait for one another while they build.
        lost = isinstance(error, RuntimeError) and distributed.is_initialized()
        known = isinstance(error, KNOWN) or lost
        of_runner = isinstance(error, REFUSALS) and (
            builds_all or _builds_a_part(error)
        )
        if known or not (config or of_runner) or _of_user(error):
            raise
        # What a KeyError says is a key, or in the registries a sentence.
        said = error.args[0] if len(error.args) == 1 else error
        said = ' '.join(str(said).split()) or type(error).__name__
        if isinstance(error, KeyError) and ' ' not in said:
            said = f'there is no {said!r}'
        if config is None:
            sys.exit(f'error: the Runner refuses the config: {said}')
        for words, hint in HINTS.items():
            if words in said:
                said = f'{hint} ({said})'
        places = [f'{k}={config[k]!r}' for k in PLACES if config.get(k)]
        where = f' ({", ".join(places)})' if places else ''
        name = config.get('type')
        name = name if isinstance(name, str) else getattr(name, '__name__', '')
        sys.exit(f'error: {name}{where} of the config cannot be built: {said}')


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
        sys.exit(
            f'error: default_hooks.checkpoint.save_best is {error.args[0]!r}; '
            f'the validation gives {", ".join(scores)}'
        )


def _last_built(error: BaseException) -> Mapping | None:
    """Return the config that was being built, the innermost."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        config = frame.f_locals.get('cfg')
        in_build = frame.f_code.co_filename == build_functions.__file__
        if in_build and isinstance(config, Mapping) and 'type' in config:
            found = config
    return found


def _builds_a_part(error: BaseException) -> bool:
    """Whether the Runner calls a loader or a loop with wrong arguments."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename == RUNNER and last.name.startswith('build_')


def _of_user(error: BaseException) -> bool:
    """Whether the last line that ran is in no library and not ours."""
    files = [f.filename for f in traceback.extract_tb(error.__traceback__)]
    # Python's own modules that have no file begin so.
    *_, last = (file for file in files if not file.startswith('<frozen'))
    return not last.startswith(LIBRARIES)
