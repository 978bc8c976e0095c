"""Trainings that are killed, told to stop, started twice, or abandoned."""

import os
import signal
import sys
import time

from .lab import EPOCHS, SECONDS, TOOLS, same_training, training

KILLS_A_TRAINING = 3


def wait_for_part(folder, process, until):
    """Waits until a checkpoint is being written."""
    while process.is_alive() and time.monotonic() < until:
        if next(folder.glob('.*.part'), None):
            return
        time.sleep(0.001)


def train_whole(lab):
    """The final checkpoint of a training that nothing disturbs, its time.

    That of all, and that from the first logged iteration on: on a GPU most of
    it goes by before.
    """
    began = time.monotonic()
    process, log = lab.start(*training('whole'))
    wait_for_iteration(process, log)
    first = time.monotonic()
    ended = lab.end(process, log)
    if ended.status:
        sys.exit(f'the uninterrupted training failed:\n{ended.output}')
    now = time.monotonic()
    return lab.final('whole'), now - began, now - first


def wait_for_iteration(process, log):
    """Until one is logged, or the training is over or takes too long."""
    last = time.monotonic() + SECONDS
    while process.is_alive() and time.monotonic() < last:
        if 'Epoch(train)' in log.read_text():
            return
        time.sleep(0.01)


def kill_trainings(lab, tally, whole, seconds, kills):
    """Kills at random times, every other while a checkpoint is written."""
    what = 'kill -9 of a training, at a random time'
    writing = 'kill -9 of a training, while a checkpoint is written'
    for first in range(0, kills, KILLS_A_TRAINING):
        work, done = f'killed{first}', 0
        for number in range(first, min(kills, first + KILLS_A_TRAINING)):
            process, log = lab.start(*training(work))
            time.sleep(lab.chance.uniform(0, seconds * 0.7))
            if number % 2:
                wait_for_part(
                    lab.folder / work, process, time.monotonic() + seconds
                )
                time.sleep(lab.chance.uniform(0, 0.004))
            process.kill()
            ended = lab.end(process, log)
            now = lab.iterations(work)
            tally.add(
                writing if number % 2 else what,
                now >= done and ended.status in (-signal.SIGKILL, 0),
                f'{work}: {now} iterations after {done}; {ended}',
            )
            done = now
        ended = lab.run(*training(work))
        tally.add(
            'a training killed up to three times equals the unbroken one',
            ended.status == 0 and same_training(whole, lab.final(work)),
            f'{work}: {ended.status} {ended.output[-500:]}',
        )


def send_signals(lab, tally, whole, seconds, count):
    for number in range(count):
        name = ('SIGTERM', 'SIGUSR1', 'SIGINT')[number % 3]
        work = f'signal{number}'
        process, log = lab.start(*training(work))
        wait_for_iteration(process, log)
        time.sleep(lab.chance.uniform(0, seconds * 0.7))
        if not process.is_alive() or f'[{EPOCHS}][' in log.read_text():
            # It may be over before the signal is heard: nothing is tried.
            lab.end(process, log)
            continue
        # A scheduler signals all processes of a job.
        send = os.killpg if number // 3 % 2 else os.kill
        send(process.pid, getattr(signal, name))
        ended = lab.end(process, log)
        line = ended.output.splitlines()[-1]
        expected = 128 + getattr(signal, name)
        said = 'interrupted' if name == 'SIGINT' else f'stopped by {name}'
        clear = (
            ended.status == expected
            and said in line
            and 'Traceback' not in ended.output
        )
        again = lab.run(*training(work))
        tally.add(
            f'{name} to a training: a line, {expected}, and the resumed '
            'training equals the unbroken one',
            clear
            and not again.status
            and same_training(whole, lab.final(work)),
            f'{ended.status} {ended.output[-600:]} then {again.status}',
        )


def share_a_folder(lab, tally, count):
    """Starts two trainings in a folder; then takes over a dead one's."""
    for number in range(count):
        work = f'shared{number}'
        first, log = lab.start(*training(work))
        lock = lab.folder / work / 'training.lock'
        while first.is_alive() and not lock.is_file():
            time.sleep(0.01)
        second = lab.run(*training(work))
        first.kill()
        lab.end(first, log)
        third = lab.run(*training(work))
        tally.add(
            'a second training in a work folder is refused, and a killed '
            "one's lock is taken over",
            second.is_clear(work)
            and third.status == 0
            and 'taken over' in third.output,
            f'{second} then {third.status} {third.output[-300:]}',
        )


def lose_a_process(lab, tally, count):
    """Kills or stops one of two processes of a training, and goes on."""
    train_two = ('bash', TOOLS / 'dist_train.sh', 'c.py', 2, '--work-dir')
    if count:
        whole = lab.run_apart(*train_two, 'pair')
        if whole.status:
            sys.exit(f'the training of two processes failed:\n{whole.output}')
    for number in range(count):
        name = ('SIGKILL', 'SIGSTOP')[number % 2]
        code = (
            'import os, signal; from mmengine.hooks import Hook; '
            'from mmengine.registry import HOOKS\n'
            '@HOOKS.register_module()\n'
            'class Lose(Hook):\n'
            '    def after_train_iter(self, runner, *a, **k):\n'
            f'        if runner.rank and runner.iter == {2 + number % 8}:\n'
            f'            os.kill(os.getpid(), signal.{name})\n'
        )
        (lab.folder / 'lose.py').write_text(code)
        (lab.folder / 'lost.py').write_text(
            "_base_ = 'c.py'\n"
            "custom_hooks = [*_base_.custom_hooks, dict(type='Lose')]\n"
            "custom_imports = dict(imports=['evmamba_mm', 'lose'])\n"
        )
        began = time.monotonic()
        ended = lab.run_apart(
            *('bash', TOOLS / 'dist_train.sh', 'lost.py', 2),
            *('--work-dir', f'lost{number}'),
        )
        seconds = time.monotonic() - began
        tally.add(
            f'{name} to one of two processes: both end, with a line',
            ended.status > 0
            and 'Traceback' not in ended.output
            and 'torchrun: process' in ended.output
            and seconds < SECONDS,
            f'{seconds:.0f} s, {ended.status} {ended.output[-900:]}',
        )
        again = lab.run_apart(*train_two, f'lost{number}', '--resume')
        tally.add(
            'two processes, one of which was lost, equal the unbroken two',
            not again.status
            and same_training(lab.final('pair'), lab.final(f'lost{number}')),
            f'{name}: {again.status} {again.output[-500:]}',
        )
