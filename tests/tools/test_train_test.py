"""train.py and test.py, run as a user runs them, on a toy classifier."""

import importlib.util
import os
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent.parent / 'tools'


def free_port():
    """Finds a free port, away from that of a process beside this one."""
    for port in range(20000 + os.getpid() % 9000, 30000):
        with socket.socket() as probe:
            if probe.connect_ex(('127.0.0.1', port)):
                return port
    raise AssertionError('every port is in use')


def as_python(path):
    """The environment in which the scripts and torchrun start a Python."""
    return dict(PYTHON=str(path), PYTHON_EXEC=str(path))


def run(folder, tool, *arguments, python=sys.executable, **environment):
    """Runs a tool in `folder`; returns its exit status and its output."""
    command = [python, str(TOOLS / tool)]
    if tool.endswith('.sh'):
        command = ['bash', str(TOOLS / tool)]
    result = subprocess.run(
        [str(part) for part in (*command, *arguments)],
        cwd=folder,
        env={
            **os.environ,
            'OMP_NUM_THREADS': '1',
            'PORT': str(free_port()),
            **as_python(python),
            **environment,
        },
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope='module')
def trained(toy):
    """The same folder after one epoch, and what was printed meanwhile."""
    status, output = run(toy, 'train.py', 'toy.py', '--work-dir', 'work')
    assert status == 0, output
    return toy, output


def load_tool(name, monkeypatch):
    path = TOOLS / f'{name}.py'
    # A script finds what lies beside it.
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location(f'tool_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_help_imports_nothing_heavy(tool):
    code = (
        'import runpy, sys, atexit\n'
        'atexit.register(lambda: print("torch" in sys.modules))\n'
        f'sys.path[0], sys.argv = {str(TOOLS)!r}, ["tool", "-h"]\n'
        f'runpy.run_path({str(TOOLS / tool)!r}, run_name="__main__")\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert '--launcher' in result.stdout
    assert '--local-rank' in result.stdout
    assert result.stdout.split()[-1] == 'False'


def test_misspelt_config_is_told_the_near_names(toy, warm_python):
    status, output = run(toy, 'train.py', 'toyyy.py', python=warm_python.path)
    assert status == 2
    assert "no file 'toyyy.py'; did you mean toy.py?" in output


@pytest.mark.parametrize(
    'tool, arguments, message',
    [
        ('train.py', ['--cfg-options', 'lr'], "'lr' is not KEY=VALUE"),
        ('train.py', ['--cfg-options', 'launcher=x'], 'give --launcher'),
        ('train.py', ['--resume', 'none.pth'], "no file 'none.pth'"),
        ('test.py', ['none.pth'], "no file 'none.pth'"),
        ('test.py', ['toy.py', '--out', 'a.json'], 'does not end in .pkl'),
    ],
    ids=['option', 'launcher', 'resume', 'checkpoint', 'out'],
)
def test_unusable_argument_is_refused(
    tool, arguments, message, toy, warm_python
):
    status, output = run(
        toy, tool, 'toy.py', *arguments, python=warm_python.path
    )
    assert status == 2
    assert message in output


@pytest.mark.parametrize(
    'option', ['--out=toy.py/a.pkl', '--show-dir=toy.py/pictures']
)
def test_a_place_that_nothing_can_be_written_to(option, toy, warm_python):
    # Any file stands for weights: they are not read before.
    arguments = ['toy.py', 'toy.py', option, '--work-dir', 'work_place']
    status, output = run(toy, 'test.py', *arguments, python=warm_python.path)
    assert status == 1
    assert re.match(
        'error: toy.py/.* cannot be written: ', output.splitlines()[-1]
    ), output


@pytest.mark.parametrize(
    'tool, arguments',
    [
        ('dist_train.sh', ['toy.py']),
        ('dist_train.sh', ['toy.py', '0']),
        ('dist_test.sh', ['toy.py', 'toy.pth', 'two']),
    ],
    ids=['absent', 'zero', 'word'],
)
def test_number_of_gpus_must_be_a_number(tool, arguments, tmp_path):
    status, output = run(tmp_path, tool, *arguments)
    assert status != 0
    assert 'usage:' in output


def test_training_writes_a_checkpoint_and_a_score(trained):
    folder, output = trained
    assert (folder / 'work' / 'epoch_1.pth').is_file()
    assert 'accuracy/top1' in output


def test_resumed_training_goes_on(trained, warm_python):
    folder, _ = trained
    status, output = run(
        folder,
        'train.py',
        'toy.py',
        '--work-dir=work',
        '--resume',
        '--cfg-options',
        'train_cfg.max_epochs=2',
        python=warm_python.path,
    )
    assert status == 0, output
    assert 'resumed epoch: 1' in output
    assert (folder / 'work' / 'epoch_2.pth').is_file()


def test_testing_writes_predictions_and_pictures(trained):
    folder, _ = trained
    status, output = run(
        folder,
        'test.py',
        'toy.py',
        'work/epoch_1.pth',
        '--out=results/out.pkl',
        '--show-dir=pictures',
    )
    assert status == 0, output
    with open(folder / 'results' / 'out.pkl', 'rb') as file:
        predictions = pickle.load(file)
    assert len(predictions) == 4
    assert len(list((folder / 'pictures').glob('*.png'))) == 4


def test_testing_with_augmentation_prints_a_score(trained, warm_python):
    folder, _ = trained
    status, output = run(
        *(folder, 'test.py', 'toy.py', 'work/epoch_1.pth', '--tta'),
        python=warm_python.path,
    )
    assert status == 0, output
    assert 'AverageClsScoreTTA' in output
    assert 'accuracy/top1' in output


def test_head_that_does_not_fit_is_refused(trained, warm_python):
    folder, _ = trained
    status, output = run(
        folder,
        'test.py',
        'toy.py',
        'work/epoch_1.pth',
        '--cfg-options',
        'model.head.in_channels=64',
        python=warm_python.path,
    )
    assert status != 0
    assert 'fit the model of the config: 1 of another shape (head.fc' in output
    assert 'Traceback' not in output


def test_two_processes_train_on_the_cpu(toy, warm_python):
    status, output = run(
        toy,
        *('dist_train.sh', 'toy.py', 2, '--work-dir', 'work_of_two'),
        python=warm_python.path,
        CUDA_VISIBLE_DEVICES='',
    )
    assert status == 0, output
    assert (toy / 'work_of_two' / 'epoch_1.pth').is_file()
    # Four images, two processes, two images each at a time: one step.
    assert 'Epoch(train) [1][1/1]' in output


def test_two_processes_test_on_the_cpu(trained, warm_python):
    folder, _ = trained
    status, output = run(
        folder,
        *('dist_test.sh', 'toy.py', 'work/epoch_1.pth', 2),
        '--out=results/of_two.pkl',
        python=warm_python.path,
        CUDA_VISIBLE_DEVICES='',
    )
    assert status == 0, output
    assert 'accuracy/top1' in output
    with open(folder / 'results' / 'of_two.pkl', 'rb') as file:
        paths = [sample['img_path'] for sample in pickle.load(file)]
    assert len(set(paths)) == len(paths) == 4


@pytest.mark.parametrize(
    'hook, changed',
    [
        ('VisualizationHook', 'out_dir'),
        ('mmdet.DetVisualizationHook', 'test_out_dir'),
        ('mmseg.SegVisualizationHook', 'draw'),
    ],
)
def test_show_dir_sets_the_hosts_own_hook(hook, changed, monkeypatch):
    from mmengine.config import Config

    tool = load_tool('test', monkeypatch)
    hooks = dict(visualization=dict(type=hook))
    cfg = Config(dict(default_hooks=hooks, visualizer=dict()))
    tool.draw_predictions(cfg, 'pictures')
    assert cfg.default_hooks.visualization[changed]


@pytest.mark.parametrize(
    'tool, function, arguments, message',
    [
        ('test', 'draw_predictions', ['pictures'], '--show-dir'),
        ('test', 'augment_at_test_time', [], 'tta_pipeline'),
        ('train', 'scale_learning_rate', [], 'base_batch_size'),
        ('train', 'use_mixed_precision', [], '--amp'),
    ],
)
def test_config_that_lacks_a_part_is_refused(
    tool, function, arguments, message, monkeypatch
):
    from mmengine.config import Config

    module = load_tool(tool, monkeypatch)
    cfg = Config(dict(default_hooks={}, optim_wrapper=dict(type='Other')))
    with pytest.raises(ValueError, match=message):
        getattr(module, function)(cfg, *arguments)
