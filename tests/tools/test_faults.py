"""Kills, signals and broken files, as a user of the tools meets them.

`tools/misc/inject_faults.py` does more of it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from evmamba_mm.cli import launch, lock

from .test_launchers import environment, run, wait_for
from .test_resume import save
from .test_train_test import TOOLS, as_python, free_port, load_tool

LONG = ('train_cfg.max_epochs=100000', 'default_hooks.logger.interval=1')
NO_VAL = ('val_dataloader=None', 'val_cfg=None', 'val_evaluator=None')
HOOKS = (
    'default_hooks.signals.type=SignalHook',
    'default_hooks.signals.interval=2',
)


def hear_ctrl_c():
    # Below a shell's background job it is ignored, and so by every child.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A signal to its group is for this training alone.
    os.setpgrp()


@contextlib.contextmanager
def start(folder, *command, **extra):
    with subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_ctrl_c,
    ) as process:
        try:
            yield process
        finally:
            # Nothing but a failed test leaves it running.
            process.kill()


def test_second_training_is_refused_and_ctrl_c_is_a_line(toy, warm_python):
    command = [sys.executable, TOOLS / 'train.py', 'toy.py']
    command += ['--work-dir', 'work_shared', '--cfg-options', *LONG, *NO_VAL]
    with start(toy, *command) as first:
        wait_for(toy / 'work_shared' / 'last_checkpoint', first)
        status, output = run(toy, warm_python.path, *command[1:])
        first.send_signal(signal.SIGINT)
        said = first.communicate(timeout=120)[0]
    assert status == 1
    assert output.splitlines()[-1].startswith(
        f'error: work_shared is in use: process {first.pid} on '
    )
    assert first.returncode == 130, said
    assert said.splitlines()[-1].startswith('interrupted; --resume goes on')
    assert 'Traceback' not in output + said
    assert not (toy / 'work_shared' / 'training.lock').exists()


HALF = """
import io

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

class HalfMade:
    def __del__(self):
        raise AttributeError('not made to its end')

@HOOKS.register_module()
class Interrupt(Hook):
    def after_train_iter(self, runner, batch_idx, **more):
        made, file = HalfMade(), io.BytesIO()
        writer = torch._C.PyTorchFileWriter(file)
        writer.write_record('weights', b'1', 1)
        # As when Ctrl-C ends torch.save: at its end the writer aborts.
        file.close()
        raise KeyboardInterrupt
"""


def test_ctrl_c_while_a_library_makes_an_object(toy):
    (toy / 'half.py').write_text(HALF)
    (toy / 'interrupted.py').write_text(
        "_base_ = 'toy.py'\n"
        "custom_imports = dict(imports=['evmamba_mm', 'half'])\n"
        "custom_hooks = [dict(type='Interrupt')]\n"
    )
    status, output = run(
        *(toy, sys.executable, TOOLS / 'train.py', 'interrupted.py'),
        PYTHONPATH=f'{toy}:{environment().get("PYTHONPATH", "")}',
    )
    assert status == 130, output
    assert output.splitlines()[-1].startswith('interrupted; --resume goes on')


BURST = """
import signal
import sys

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

class Stream:
    def write(self, text):
        signal.raise_signal(signal.SIGINT)
        return sys.__stderr__.write(text)

    def flush(self):
        sys.__stderr__.flush()

class Removed:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

@HOOKS.register_module()
class Press(Hook):
    removed = None

    def before_train_epoch(self, runner):
        self.press()

    def before_test_epoch(self, runner):
        self.press()

    def press(self):
        sys.stderr = Stream()
        self.removed = Removed()
        self.removed = None
        signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_ctrl_c_again_while_the_first_ends_the_tool(tool, toy, warm_python):
    (toy / 'burst.py').write_text(BURST)
    (toy / 'pressed.py').write_text(
        "_base_ = 'toy.py'\n"
        "custom_imports = dict(imports=['evmamba_mm', 'burst'])\n"
        "custom_hooks = [dict(type='Press')]\n"
    )
    command = [warm_python.path, TOOLS / tool, 'pressed.py']
    if tool == 'test.py':
        model = Config.fromfile(toy / 'toy.py').model
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            weights = MODELS.build(model).state_dict()
        torch.save(dict(state_dict=weights), toy / 'pressed.pth')
        command += ['pressed.pth']
    path = f'{toy}:{environment().get("PYTHONPATH", "")}'
    status, output = run(toy, *command, PYTHONPATH=path)
    assert status == 130, output
    assert output.splitlines()[-1].startswith('interrupted')
    assert 'Traceback' not in output


def test_lock_of_a_killed_training_is_taken_over(tmp_path, package_log):
    (tmp_path / 'training.lock').write_text('process 1 on host\n')
    with lock.work_folder(tmp_path, 'none'):
        pass
    (record,) = package_log.records
    assert 'left by process 1 on host' in record.getMessage()


def dist(folder, work, *options):
    return (
        *('bash', TOOLS / 'dist_train.sh', 'toy.py', 2, '--work-dir', work),
        *('--cfg-options', *LONG, *NO_VAL, *options),
    )


def test_two_processes_stop_together(toy, warm_python):
    places = dict(as_python(warm_python.path), PORT=str(free_port()))
    command = dist(toy, 'work_two', *HOOKS)
    with start(toy, *command, **places) as process:
        wait_for(toy / 'work_two' / 'last_checkpoint', process)
        process.send_signal(signal.SIGUSR1)
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGUSR1
    assert said.count('stopped by SIGUSR1 after iteration') == 1
    assert said.splitlines()[-1] == 'torchrun: ended by SIGUSR1'
    assert 'Traceback' not in said
    saved = torch.load(toy / 'work_two' / 'interrupted.pth')
    assert saved['meta']['iter'] % 2 == 0


BY_ITERATIONS = """
_base_ = 'toy.py'
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=100000)
train_dataloader = dict(
    sampler=dict(_delete_=True, type='InfiniteSampler'), num_workers=1
)
param_scheduler = None
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=3),
    signals=dict(type='SignalHook'),
)
"""


@pytest.mark.parametrize('persistent', [False, True])
@pytest.mark.parametrize('config', ['toy.py', 'by_iterations.py'])
def test_signals_to_all_processes_of_a_job(config, persistent, toy):
    """As a scheduler sends them: the loader's workers get them as well."""
    (toy / 'by_iterations.py').write_text(BY_ITERATIONS)
    work = f'work_{config}_{persistent}'
    command = [sys.executable, TOOLS / 'train.py', config]
    command += ['--work-dir', work, '--cfg-options', *NO_VAL, HOOKS[0]]
    command += LONG if config == 'toy.py' else []
    command += ['train_dataloader.num_workers=1']
    command += [f'train_dataloader.persistent_workers={persistent}']
    with start(toy, *command) as process:
        wait_for(toy / work / 'last_checkpoint', process)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(0.02)
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.splitlines()[-1].startswith('stopped by SIGTERM after')
    assert (toy / work / 'interrupted.pth').is_file()


def test_persistent_workers_end_with_their_training(toy, warm_python):
    command = [warm_python.path, TOOLS / 'train.py', 'toy.py']
    command += ['--work-dir', 'work_persistent', '--cfg-options']
    for name in ('train_dataloader', 'val_dataloader'):
        command += [f'{name}.num_workers=1', f'{name}.persistent_workers=True']
    status, output = run(toy, *command)
    assert status == 0, output


LOSE = """
import os, pathlib, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Lose(Hook):
    def after_train_iter(self, runner, batch_idx, **more):
        if runner.rank and runner.iter == 2:
            pathlib.Path('lost.txt').write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_process_that_stops_is_missed_after_the_timeout(toy, warm_python):
    (toy / 'lose.py').write_text(LOSE)
    (toy / 'lost.py').write_text(
        "_base_ = 'toy.py'\n"
        "custom_imports = dict(imports=['evmamba_mm', 'lose'])\n"
        "custom_hooks = [dict(type='Lose')]\n"
        'env_cfg = dict(dist_cfg=dict(timeout=5))\n'
    )
    command = ['lost.py' if x == 'toy.py' else x for x in dist(toy, 'lost')]
    places = dict(as_python(warm_python.path), PORT=str(free_port()))
    places['PYTHONPATH'] = f'{toy}:{environment().get("PYTHONPATH", "")}'
    output = ''
    with start(toy, *command, **places) as process:
        for line in process.stdout:
            output += line
            # torchrun would wait half a minute for a process that is stopped.
            if 'closing signal SIGTERM' in line:
                os.kill(int((toy / 'lost.txt').read_text()), signal.SIGKILL)
        status = process.wait()
    assert status == 1
    assert 'error: process 0 lost another one' in output, output
    assert 'within 5 s (env_cfg.dist_cfg.timeout)' in output
    assert output.splitlines()[-1].startswith('torchrun: process 0 (pid ')
    assert 'Traceback' not in output


# A machine with a GPU, on which nothing starts CUDA.
FORK_SAFE = """
import sys, torch
def refuse(*arguments):
    raise RuntimeError('CUDA starts before the processes are forked')
torch._C._cuda_getDeviceCount = torch._C._cuda_init = refuse
torch.cuda._lazy_init = refuse
torch.cuda._device_count_nvml = lambda: 1
sys.path.insert(0, sys.argv[1])
from faults import lab, files, trainings
lab.import_for_all()
assert torch.cuda.is_available()
laboratory = lab.Laboratory('.', seed=0)
laboratory.iterations('nowhere')
"""


def test_laboratory_starts_no_cuda_before_it_forks(tmp_path):
    pytest.importorskip('mmpretrain')
    command = (sys.executable, '-c', FORK_SAFE, TOOLS / 'misc')
    environ = {'PYTHONPATH': str(TOOLS.parent), 'CUDA_VISIBLE_DEVICES': '0'}
    status, output = run(tmp_path, *command, **environ)
    assert status == 0, output


def test_state_of_another_training_is_a_line(toy, warm_python):
    command = [warm_python.path, TOOLS / 'train.py', 'toy.py', '--cfg-options']
    work = ('work_dir=work_other', *NO_VAL)
    assert run(toy, *command, *work)[0] == 0
    file = toy / 'work_other' / 'epoch_1.pth'
    content = torch.load(file)
    content['optimizer']['param_groups'] *= 2
    torch.save(content, file)
    status, output = run(toy, *command, *work, 'resume=True')
    line = output.splitlines()[-1]
    assert status == 1
    assert 'Traceback' not in output
    assert line.startswith(f'error: {file.relative_to(toy)} cannot be resumed')
    assert 'parameter groups' in line


@pytest.mark.parametrize('name, said', [('train', True), ('data', False)])
def test_work_folder_that_cannot_be_written(tmp_path, name, said):
    (tmp_path / name).touch()
    cfg = Config(dict(work_dir=str(tmp_path / 'train' / 'run')))
    wrong = NotADirectoryError
    if said:
        wrong = launch.WorkFolderError
    with pytest.raises(wrong), launch.work_folder_named(cfg):
        (tmp_path / name / 'run').mkdir()


@pytest.mark.parametrize(
    'text, lost',
    [
        ('[gloo/pair.cc:1] Timed out waiting 5000ms for recv', True),
        ('Rank 1 successfully reached\nConnection closed by peer', True),
        ('DataLoader timed out after 5 seconds: Timed out', False),
        ('DataLoader worker (pid 3) exited: Broken pipe', False),
    ],
)
def test_loader_that_waits_is_no_lost_process(text, lost):
    assert launch.tells_of_loss(text) is lost


@pytest.fixture
def reproducing(monkeypatch):
    load_tool('paper/reproduce', monkeypatch)
    from reproducing import commands, measured

    return commands, measured


def test_broken_best_checkpoint_is_not_tested(reproducing, tmp_path, capsys):
    save(tmp_path / 'epoch_1.pth')
    (tmp_path / 'best_acc_epoch_1.pth').write_bytes(b'PK')
    commands, _ = reproducing
    found = commands.trained_checkpoint(tmp_path)
    assert found == tmp_path / 'epoch_1.pth'
    assert 'not tested: ' in capsys.readouterr().err


def test_file_of_results(reproducing, tmp_path):
    _, measured = reproducing
    path = tmp_path / 'results' / 'table2.csv'
    line = dict.fromkeys(measured.COLUMNS, '1')
    measured.check(path)
    measured.write(path, [line])
    measured.write(path, [line | dict(row='2')])
    measured.check(path)
    assert [found['row'] for found in measured.read(path)] == ['1', '2']
    assert [*path.parent.iterdir()] == [path]
    whole = path.read_bytes()
    for damaged in (whole[:-5], b'a,b\n', b'', whole + b'\xff', whole + b'x,'):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match='table2.csv.* --results'):
            measured.check(path)
