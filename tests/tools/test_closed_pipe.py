"""Tools whose output is cut off, as by `| head`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = (
    'model,mode,phase,batch,size,dtype,images_per_s,ms,peak_gib,device,'
    'torch,command\n'
    'tiny,eager,inference,1,224,float32,10,100,,cpu,2.0,none\n'
)


def run_unread(arguments, unbuffered=False):
    """Runs with a standard output that nobody can read from."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = dict(os.environ)
    environment.pop('PYTHONUNBUFFERED', None)
    if unbuffered:
        environment['PYTHONUNBUFFERED'] = '1'
    try:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
    finally:
        os.close(writer)


# Written at once, or held back until the end: either fails elsewhere.
@pytest.mark.parametrize('unbuffered', [True, False], ids=['now', 'at-end'])
def test_closed_output_of_a_list_of_rows(unbuffered):
    result = run_unread(['tools/paper/reproduce.py', '--list'], unbuffered)
    assert result.stderr == ''
    assert result.returncode == -signal.SIGPIPE


@pytest.mark.parametrize('unbuffered', [True, False], ids=['now', 'at-end'])
def test_closed_output_of_a_table_of_speeds(tmp_path, unbuffered):
    file = tmp_path / 'rows.csv'
    file.write_text(ROWS)
    result = run_unread(
        ['tools/analysis_tools/benchmark.py', 'table', file], unbuffered
    )
    assert result.stderr == ''
    assert result.returncode == -signal.SIGPIPE


def test_tables_cut_off_after_a_line():
    tool = subprocess.Popen(
        [
            sys.executable,
            '-u',
            'tools/paper/tables.py',
            '--no-count',
            '--check',
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with tool:
        # The logs, which have handlers of their own, come before the tables.
        while not tool.stdout.readline().startswith('table'):
            assert tool.poll() is None
        tool.stdout.close()
        assert tool.stderr.read() == ''
    assert tool.returncode in (0, -signal.SIGPIPE)
