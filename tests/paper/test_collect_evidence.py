"""Trainings with seeds that meet mistakes, interruptions and each other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools' / 'paper'))

from evidence.scores import Scores, read  # noqa: E402
from evidence.trainings import (  # noqa: E402
    LOCK,
    Training,
    check_batch,
    devices,
    free_port,
    start_of,
)
from evidence.trainings import run as train  # noqa: E402

EVIDENCE = ROOT / 'configs' / 'evidence'
TOOL = ROOT / 'tools' / 'paper' / 'collect_evidence.py'
FIELDS = TOOL.with_name('collect_fields.py')
# Read at once by the collector, and for ever by the training.
SLOW = """\
import sys
import time

if sys.argv[0].endswith('train.py'):
    print('started', flush=True)
    time.sleep(600)
"""


def command_of(python, tool, folder, *arguments):
    return [
        *(str(python), str(tool)),
        *('--results', str(folder / 'scores')),
        *('--work-dir', str(folder / 'work')),
        *map(str, arguments),
    ]


def run(python, tool, folder, *arguments, cwd=ROOT):
    """The exit status, and the last line of the errors."""
    ended = subprocess.run(
        command_of(python.path, tool, folder, *arguments),
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
    )
    assert 'Traceback' not in ended.stderr
    return ended.returncode, ended.stderr.splitlines()[-1]


def store(folder, training, value):
    log = training.work_dir(folder) / 'date' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f'{{"accuracy/top1": {value}, "step": 1}}\n')
    Scores(folder, 'abc').store(training, folder, 1, 1)


@pytest.mark.parametrize('tool', [TOOL, FIELDS], ids=lambda tool: tool.stem)
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere.py'], "there is no config 'nowhere.py'"),
        (['{tiny}', '--results', '{tiny}/a'], '--results'),
        (['{tiny}', '--work-dir', '{tiny}'], '--work-dir'),
        (['{tiny}', '--seed', '4294967296'], 'is no seed'),
    ],
)
def test_wrong_arguments(tool, arguments, message, tmp_path, warm_python):
    tiny = EVIDENCE / 'tin50' / 'tiny.py'
    given = [each.format(tiny=tiny) for each in arguments]
    status, line = run(warm_python, tool, tmp_path, *given)
    assert status == 2
    assert message in line


def test_a_config_that_cannot_be_read(tmp_path, warm_python):
    config = tmp_path / 'broken.py'
    config.write_text('model = (\n')
    status, line = run(warm_python, TOOL, tmp_path, config)
    assert status == 2
    assert line.startswith('error: config')


def test_damaged_scores(tmp_path, warm_python):
    (tmp_path / 'scores').mkdir()
    (tmp_path / 'scores' / 'tin50.csv').write_text('row,seed\ntiny,0\n')
    status, line = run(
        warm_python, TOOL, tmp_path, EVIDENCE / 'tin50' / 'tiny.py'
    )
    assert status == 2
    assert 'must have the columns' in line


def test_fields_without_a_training(tmp_path, warm_python):
    status, line = run(
        warm_python, FIELDS, tmp_path, EVIDENCE / 'tin50' / 'tiny.py'
    )
    assert status == 2
    assert line.endswith('tiny-2 holds no finished training')


def test_paths_are_those_of_the_caller(tmp_path, warm_python):
    """From another folder a relative path means what it means there."""
    (tmp_path / 'broken.py').write_text("model = dict(type='None')\n")
    ended = subprocess.run(
        [
            *(warm_python.path, TOOL, 'broken.py', '--seeds', '0', '0'),
            *('--results', 'scores', '--work-dir', 'work'),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
    )
    assert ended.returncode == 1
    # A seed that is given twice is trained once.
    (line,) = [x for x in ended.stderr.splitlines() if x.startswith('error')]
    (log,) = (tmp_path / 'work').glob('*/broken-0/output.txt')
    assert line.endswith(f'it failed; see {log}')
    assert 'error' in log.read_text()


def test_an_interrupted_run_ends_its_trainings(tmp_path):
    config = tmp_path / 'slow.py'
    config.write_text(SLOW)
    process = subprocess.Popen(
        command_of(
            *(sys.executable, TOOL, tmp_path, config, '--seeds', '0', '1')
        ),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
        # A shell's background job ignores it, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log = tmp_path / 'work' / tmp_path.name / 'slow-0' / 'output.txt'
    try:
        for _ in range(600):
            if process.poll() is not None:
                break
            if log.is_file() and 'started' in log.read_text():
                break
            time.sleep(0.2)
        assert 'started' in log.read_text()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith('interrupted')
    assert not log.parents[1].joinpath('slow-1').exists()


def test_two_at_once_do_not_train_the_same(tmp_path):
    training = Training(EVIDENCE / 'tin50' / 'tiny.py', 0)
    folder = training.work_dir(tmp_path)
    folder.mkdir(parents=True)
    code = (
        'import pathlib, sys; from evmamba_mm import file_locks\n'
        'file = file_locks.acquire(pathlib.Path(sys.argv[1]), False)\n'
        'print("held", flush=True); input()'
    )
    holder = subprocess.Popen(
        [sys.executable, '-c', code, str(folder / LOCK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
    )
    with holder:
        assert holder.stdout.readline() == b'held\n'
        with pytest.raises(ValueError, match='another process trains it'):
            train(training, '', tmp_path, set())
        holder.stdin.write(b'\n')
        holder.stdin.flush()
    assert not (folder / 'output.txt').exists()


def test_a_second_training_replaces_the_first(tmp_path):
    tiny, other = (
        Training(EVIDENCE / 'tin50' / f'{row}.py', 0)
        for row in ('tiny', 'ss2d')
    )
    store(tmp_path, tiny, 1.0)
    store(tmp_path, other, 2.0)
    store(tmp_path, tiny, 3.0)
    rows = read(tmp_path / 'tin50.csv')
    assert [(r['row'], r['value']) for r in rows] == [
        ('ss2d', '2.0'),
        ('tiny', '3.0'),
    ]


def test_a_log_that_is_cut_off(tmp_path):
    training = Training(EVIDENCE / 'tin50' / 'tiny.py', 0)
    log = training.work_dir(tmp_path) / 'date' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('{"accuracy/top1": 1.0, "st')
    with pytest.raises(ValueError, match='is damaged'):
        Scores(tmp_path, 'abc').store(training, tmp_path, 1, 1)


def test_the_scale_of_the_loss_is_stored(tmp_path):
    training = Training(EVIDENCE / 'precision' / 'eager.py', 0)
    folder = training.work_dir(tmp_path)
    folder.mkdir(parents=True)
    (folder / 'last_checkpoint').write_text('epoch_15.pth')
    scaler = torch.amp.GradScaler('cpu', init_scale=4096.0)
    scaler.scale(torch.ones(1))
    state = dict(
        state_dict=dict(weight=torch.ones(1)),
        optimizer=dict(loss_scaler=scaler.state_dict()),
    )
    torch.save(state, folder / 'epoch_15.pth')
    store(tmp_path, training, 50.0)
    stored = {
        r['metric']: r['value'] for r in read(tmp_path / 'precision.csv')
    }
    assert stored == {'accuracy/top1': '50.0', 'loss scale': '4096.0'}


def test_several_gpus_train_together():
    training = Training(EVIDENCE / 'precision' / 'two-gpus.py', 0, 2)
    command = training.command(Path('work'))
    assert command[:2] == ['bash', 'tools/dist_train.sh']
    assert command[3] == '2'
    check_batch(training)
    with pytest.raises(ValueError, match='256 images a step, and has 128 on'):
        check_batch(Training(training.config, 0))


@pytest.mark.parametrize(
    'path',
    sorted(EVIDENCE.glob('[!_]*/*.py')),
    ids=lambda path: str(path)[-25:],
)
def test_each_config_is_for_the_gpus_that_it_says(path):
    for host in ('mmdet', 'mmseg', 'mmpretrain'):
        pytest.importorskip(host, reason=f'{host} is not installed')
    check_batch(Training(path, 0, 2 if path.stem == 'two-gpus' else 1))


def test_gpus_count_among_the_visible_ones(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,7')
    assert devices(None) == ['4', '5', '7']
    assert devices(['0,2']) == ['4,7']
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    assert devices(['1', '2']) == ['1', '2']
    with pytest.raises(ValueError, match=r"no GPU '3'; there are 0, 1, 2"):
        devices(['2,3'])
    with pytest.raises(ValueError, match='names a GPU twice'):
        devices(['0,1', '1,2'])
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert devices(None) == ['']


@pytest.mark.parametrize('task', ['bccd', 'camvid', 'nuclei'])
@pytest.mark.parametrize('row', ['tiny', 'resnet18', 'pvtv2-b0'])
def test_missing_weights_have_a_training(task, row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training = Training(EVIDENCE / task / f'{row}.py', 0)
    start = start_of(training)
    assert start == Training(EVIDENCE / 'tin50' / f'{row}.py', 2)
    assert start.config.is_file()
    weights = start.work_dir(tmp_path / 'work_dirs' / 'evidence')
    weights.mkdir(parents=True)
    (weights / 'epoch_15.pth').touch()
    assert start_of(training) is None


def test_random_weights_have_none():
    assert start_of(Training(EVIDENCE / 'bccd' / 'tiny-scratch.py', 0)) is None
    assert start_of(Training(EVIDENCE / 'tin50' / 'tiny.py', 0)) is None


def test_ports_differ():
    assert 1024 <= free_port() <= 65535
