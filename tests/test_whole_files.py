"""Files that are there whole or not at all, and locks on them."""

import subprocess
import sys

import pytest

from evmamba_mm import file_locks
from evmamba_mm.whole_files import (
    check_writable,
    remove_parts,
    written_whole,
)


def test_error_leaves_the_old_content(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(OSError, match='disk'):
        with written_whole(path) as part:
            part.write_text('half')
            raise OSError('disk is full')
    assert path.read_text() == 'old'
    assert [*tmp_path.iterdir()] == [path]


def test_a_path_is_tried_before_the_work(tmp_path):
    path = tmp_path / 'new' / 'a.txt'
    check_writable(path)
    assert [*path.parent.iterdir()] == []
    for wrong in (tmp_path, '/proc/a.txt'):
        with pytest.raises(ValueError, match='cannot be written'):
            check_writable(wrong)


def test_killed_writer_leaves_the_old_content(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    code = (
        'import os, signal\n'
        'from evmamba_mm.whole_files import written_whole\n'
        f'with written_whole({str(path)!r}) as part:\n'
        "    part.write_text('half')\n"
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    ended = subprocess.run([sys.executable, '-W', 'ignore', '-c', code])
    assert ended.returncode == -9
    assert path.read_text() == 'old'
    assert len([*tmp_path.iterdir()]) == 2
    remove_parts(tmp_path)
    assert [*tmp_path.iterdir()] == [path]


HOLD = (
    'import sys\n'
    'from pathlib import Path\n'
    'from evmamba_mm import file_locks\n'
    'file = file_locks.acquire(Path(sys.argv[1]), wait=False)\n'
    "print('held', flush=True)\n"
    'sys.stdin.read()\n'
)


def test_lock_ends_with_its_holder(tmp_path):
    path = tmp_path / 'a.lock'
    with subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-c', HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == 'held\n'
        with pytest.raises(BlockingIOError):
            file_locks.acquire(path, wait=False)
        holder.kill()
    file_locks.release(path, file_locks.acquire(path, wait=False))
    assert not path.exists()
