"""Workers of a loader end with their training, whatever they do."""

import subprocess
import sys

import pytest

from evmamba_mm.compat import loader_workers

STUCK = """
import re, time
from evmamba_mm.compat.loader_workers import DataLoader

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

loader = DataLoader(
    Images(), num_workers=1, timeout=2, multiprocessing_context='fork'
)
for batch in loader:
    print(batch, flush=True)
"""


@pytest.mark.skipif(not loader_workers.SERVED, reason='needs sigwaitinfo')
def test_stuck_worker_ends_with_its_training():
    ended = subprocess.run(
        [sys.executable, '-c', STUCK],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    assert 'timed out after 2 seconds' in ended.stderr.splitlines()[-1]
