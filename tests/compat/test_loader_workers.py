"""Workers of a loader end with their training, whatever they do."""

import os
import signal
import subprocess
import sys

import pytest
from mmengine.runner import FlexibleRunner, Runner
from torch.utils import data

from evmamba_mm.compat import loader_workers
from evmamba_mm.compat.loader_workers import guarded

STUCK = """
import re, time
from evmamba_mm.compat.loader_workers import guarded
from torch.utils.data import DataLoader

class Images:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            # The batches before it are fetched in the meantime.
            time.sleep(1)
            # It holds the interpreter's lock for ever.
            re.match('(a+)+b', 'a' * 60)
        return index

loader = guarded(DataLoader)(
    Images(), num_workers=1, timeout=2, multiprocessing_context='fork'
)
for batch in loader:
    print(batch, flush=True)
"""


served = pytest.mark.skipif(
    not loader_workers.SERVED, reason='needs sigwaitinfo'
)


@served
def test_stuck_worker_ends_with_its_training():
    ended = subprocess.run(
        [sys.executable, '-c', STUCK],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    assert 'timed out after 2 seconds' in ended.stderr.splitlines()[-1]


MASK = (
    'import signal; print(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))'
)


class Masks:
    """How many signals a worker blocks, a program of it, and its fork."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        child = os.fork()
        if child == 0:
            os._exit(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        forked = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        program = subprocess.check_output([sys.executable, '-c', MASK])
        own = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return len(own), int(program), forked


class Mine(data.DataLoader):
    """A user's own."""


class Lazy(data.DataLoader):
    """Its workers start with the first batch."""

    def __iter__(self):
        yield from super().__iter__()


@served
@pytest.mark.parametrize('runner', [Runner, FlexibleRunner])
@pytest.mark.parametrize('kind', [data.DataLoader, Mine, Lazy])
def test_programs_of_a_worker_hear_the_signals(kind, runner):
    loader = runner.build_dataloader(kind(Masks(), num_workers=1))
    assert isinstance(loader, kind)
    for masks in loader:
        own, program, forked = (int(count) for count in masks)
        assert (own, program, forked) == (3, 0, 0)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


@served
def test_program_of_a_worker_can_be_ended():
    class Programs:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            with subprocess.Popen(['sleep', '60']) as program:
                program.terminate()
                return program.wait(10)

    loader = guarded(data.DataLoader)(Programs(), num_workers=1)
    assert [int(status) for status in loader] == [-signal.SIGTERM]
