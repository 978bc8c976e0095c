"""Kills, signals and broken files, as a user of the tools meets them.

`tools/misc/inject_faults.py` does more of it.
"""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config

from evmamba_mm.cli import launch, lock, resume
from evmamba_mm.weight_files import BrokenWeightsError

from .test_launchers import environment, run, wait_for
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


def test_signal_to_all_processes_of_a_job(toy):
    """As a scheduler sends it: the loader's workers get it as well."""
    command = [sys.executable, TOOLS / 'train.py', 'toy.py']
    command += ['--work-dir', 'work_job', '--cfg-options', *LONG, *NO_VAL]
    command += [HOOKS[0], 'train_dataloader.num_workers=2']
    with start(toy, *command) as process:
        wait_for(toy / 'work_job' / 'last_checkpoint', process)
        os.killpg(process.pid, signal.SIGTERM)
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.splitlines()[-1].startswith('stopped by SIGTERM after')
    assert (toy / 'work_job' / 'interrupted.pth').is_file()


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


def save(path, **content):
    meta = dict(epoch=1, iter=3, time='20260101_000000', seed=7)
    weights = dict(a=torch.ones(9))
    whole = dict(meta=meta, state_dict=weights, message_hub={}, optimizer={})
    torch.save(whole | dict(param_schedulers=[]) | content, path)


def chosen(folder, **settings):
    cfg = Config(dict(work_dir=str(folder), resume=True, **settings))
    resume.choose_checkpoint(cfg)
    return cfg


def test_resume_finds_a_file_and_its_seed(tmp_path, package_log):
    save(tmp_path / 'epoch_1.pth')
    (tmp_path / 'epoch_2.pth').write_bytes(b'')
    cfg = chosen(tmp_path)
    assert cfg.load_from == str(tmp_path / 'epoch_1.pth')
    assert cfg.randomness.seed == 7
    (record,) = package_log.records
    assert 'epoch_2.pth is empty (0 bytes)' in record.getMessage()


def test_flexible_runner_is_not_resumed(tmp_path):
    save(tmp_path / 'epoch_1.pth')
    with pytest.raises(ValueError, match='leave runner_type out'):
        chosen(tmp_path, runner_type='FlexibleRunner')


def test_resume_of_nothing_starts_from_the_beginning(tmp_path):
    cfg = chosen(tmp_path)
    assert not cfg.resume
    assert 'load_from' not in cfg


def test_file_to_resume_that_is_none(tmp_path, package_log):
    save(tmp_path / 'epoch_1.pth')
    broken, bare = tmp_path / 'a.pth', tmp_path / 'b' / 'b.pth'
    broken.write_bytes(b'<html>')
    with pytest.raises(BrokenWeightsError, match='web page.*epoch_1.pth load'):
        chosen(tmp_path, load_from=str(broken))
    bare.parent.mkdir()
    torch.save(dict(state_dict=dict(a=torch.ones(2))), bare)
    with pytest.raises(BrokenWeightsError, match='no state of a training'):
        chosen(tmp_path, load_from=str(bare))
    save(tmp_path / 'c.pth')
    content = torch.load(tmp_path / 'c.pth')
    del content['optimizer']
    torch.save(content, tmp_path / 'c.pth')
    package_log.clear()
    chosen(tmp_path, load_from=str(tmp_path / 'c.pth'))
    (record,) = package_log.records
    assert 'c.pth has no optimizer: it starts anew' in record.getMessage()


def test_what_a_resume_does_beside_the_config_is_told(tmp_path, package_log):
    group = dict(lr=0.01, initial_lr=0.1, betas=(0.9, 0.99))
    state = dict(state={}, param_groups=[group])
    save(tmp_path / 'a.pth', optimizer=state, param_schedulers=[{}, {}])
    adam = dict(type='AdamW', lr=0.2)
    settings = dict(
        train_cfg=dict(max_epochs=1),
        optim_wrapper=dict(optimizer=adam),
        param_scheduler=[dict(type='LinearLR')],
    )
    path = str(tmp_path / 'a.pth')
    chosen(tmp_path, load_from=path, **settings)
    said = [record.getMessage() for record in package_log.records]
    for line, part in zip(
        said,
        (
            'is of epoch 1, and train_cfg.max_epochs is 1: nothing is left',
            'has no state of the optimizer',
            'has the state of 2 schedules, and the config 1',
            '(0.1), not with optim_wrapper.optimizer.lr=0.2',
        ),
        strict=True,
    ):
        assert line.startswith(path) and part in line


@pytest.mark.parametrize('epoch', ['two', -5, float('nan'), None])
def test_epoch_that_is_no_number(epoch, tmp_path):
    save(tmp_path / 'a.pth', meta=dict(epoch=epoch, iter=3))
    with pytest.raises(BrokenWeightsError, match=r'no state.*meta\.epoch'):
        chosen(tmp_path, load_from=str(tmp_path / 'a.pth'))


def test_new_training_over_an_old_one_is_told(tmp_path, package_log):
    save(tmp_path / 'epoch_1.pth')
    resume.choose_checkpoint(Config(dict(work_dir=str(tmp_path))))
    (record,) = package_log.records
    assert 'epoch_1.pth is of an earlier training' in record.getMessage()


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
