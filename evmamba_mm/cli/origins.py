"""Where an error comes from: a library, or a file of the user's own."""

import inspect

from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner

from ..own_files import calls_of, is_own

READER = inspect.getfile(Config)
RUNNERS = (inspect.getfile(Runner), inspect.getfile(FlexibleRunner))


def of_user(error: BaseException) -> bool:
    """Whether the last line that ran is in no library and not ours."""
    return is_own(calls_of(error)[-1][0])


def ran_user(error: BaseException) -> bool:
    """Whether the Runner came through a file of the user's own."""
    return own_call(error) is not None


def read_own(error: BaseException) -> bool:
    """Whether mmengine read a config that runs a module of the user's own."""
    files = [file for file, _ in calls_of(error)]
    return READER in files and any(map(is_own, files[files.index(READER) :]))


def own_call(error: BaseException) -> str | None:
    """Return the last call in a file of the user's own, as "file, line N"."""
    calls = calls_of(error)
    files = [file for file, _ in calls]
    # The tool that calls the Runner is nobody's own, either.
    start = min(map(files.index, {*RUNNERS} & {*files}), default=0)
    own = [call for call in calls[start:] if is_own(call[0])]
    return f'{own[-1][0]}, line {own[-1][1]}' if own else None


def raised_by(error: BaseException) -> BaseException:
    """Return what a hook has raised, which the Runner hides in its own."""
    calls, inner = calls_of(error), error.__context__
    hidden = calls[-1][0] in RUNNERS and isinstance(inner, TypeError)
    return inner if hidden else error
