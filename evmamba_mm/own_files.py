"""Tells a user's own code from that of libraries, for errors."""

import os
import re
import site
import sysconfig
import traceback
from pathlib import Path

# A project may lie below the prefix of its Python, as /usr/src does.
LIBRARIES = tuple(
    os.path.join(folder, '')
    for folder in {
        *map(sysconfig.get_path, ('stdlib', 'platstdlib', 'purelib')),
        *(sysconfig.get_path('platlib'), *site.getsitepackages()),
        *(site.getusersitepackages(), str(Path(__file__).parent)),
    }
)
# It builds models itself, where the Runner does so for the others.
TOOL = str(Path(__file__).parents[1] / 'tools' / 'infer.py')
# What torch says about an error in a worker of a loader.
WORKER = re.compile(r'Caught \w+ in DataLoader worker.*Traceback', re.DOTALL)


def is_own(file: str) -> bool:
    """Whether a file is of no library; Python's own may have names in <>."""
    # A library by Cython names the place where it was compiled.
    if file.endswith('.pyx') and not os.path.exists(file):
        return False
    return not file.startswith((*LIBRARIES, TOOL, '<'))


def calls_of(error: BaseException) -> list[tuple[str, int]]:
    """Return (file, line) of each call of an error, a worker's last."""
    calls = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    said = str(error.args[0]) if error.args else ''
    if WORKER.match(said):
        told = re.findall(r'^  File "(.+?)", line (\d+)', said, re.MULTILINE)
        calls += [(file, int(line)) for file, line in told]
    return [call for call in calls if not call[0].startswith('<')]


def is_own_class(kind: object, methods: tuple[str, ...]) -> bool:
    """Whether one of a class's methods stands in a user's file."""
    codes = (
        getattr(getattr(kind, name, None), '__code__', None)
        for name in methods
    )
    return any(code and is_own(code.co_filename) for code in codes)
