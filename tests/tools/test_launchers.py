"""The ways to start a training: mim, SLURM, several machines, and again."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evmamba_mm.weight_files import read_weights

from ..test_packaging import mim_that_starts
from .test_train_test import TOOLS, free_port

ROOT = Path(__file__).parents[2]
SECONDS = 240


def environment(**extra):
    return {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        'PYTHON': sys.executable,
        'CUDA_VISIBLE_DEVICES': '',
        **extra,
    }


def run(folder, *command, **extra):
    """Returns the exit status and all that was printed."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope='module')
def folder_with_data(tmp_path_factory):
    """A folder in which the demo's configs find their data."""
    folder = tmp_path_factory.mktemp('mim')
    (folder / 'configs').symlink_to(ROOT / 'configs')
    return folder


@pytest.mark.parametrize(
    'host, module, config, score',
    [
        (
            'mmdet',
            'mmdet',
            'mask-rcnn_evmamba-atto_fpn_1xb8-8e_nuclei.py',
            'coco/segm_mAP_50:',
        ),
        (
            'mmpretrain',
            'mmpretrain',
            'evmamba-atto_1xb16-15e_cells.py',
            'accuracy/top1:',
        ),
        (
            'mmsegmentation',
            'mmseg',
            'upernet_evmamba-atto_1xb8-8e_nuclei-128x128.py',
            'mIoU:',
        ),
    ],
    ids=['mmdet', 'mmpretrain', 'mmsegmentation'],
)
def test_mim_trains_our_config_with_the_hosts_tool(
    host, module, config, score, folder_with_data, libraries_python
):
    pytest.importorskip('mim', reason='openmim is not installed')
    package = pytest.importorskip(module, reason=f'{host} is not installed')
    python = libraries_python.path
    options = [
        'train_dataloader.batch_size=2',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        'default_hooks.logger.interval=1',
    ]
    for split in ('train', 'val'):
        options += [
            f'{split}_dataloader.num_workers=0',
            f'{split}_dataloader.persistent_workers=False',
            f'{split}_dataloader.dataset.indices=2',
        ]
    status, output = run(
        folder_with_data,
        *(python, '-c', mim_that_starts(python), 'train', host),
        ROOT / 'configs' / 'demo' / config,
        *('--work-dir', f'work/{host}', '--cfg-options', *options),
    )
    assert status == 0, output
    tool = Path(package.__file__).parent / '.mim' / 'tools' / 'train.py'
    assert str(tool) in output
    assert re.search(r'Epoch\(train\) +\[1\]\[1/1\]', output)
    assert score in output
    assert (folder_with_data / 'work' / host / 'epoch_1.pth').is_file()


def write_script(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path):
    """A folder of stand-ins for SLURM's commands, and for Python.

    `srun` runs its command as two machines would, here. What `srun` and
    Python are called with is written to files, an argument a line.
    """
    write_script(
        tmp_path / 'srun',
        '#!/usr/bin/env bash\n'
        f'printf "%s\\n" "$@" > {tmp_path}/srun.txt\n'
        'while [[ $1 == --* ]]; do shift; done\n'
        'export SLURM_STEP_NODELIST="node[3-4]"\n'
        'SLURM_NODEID=1 "$@" & SLURM_NODEID=0 "$@" && wait $!\n',
    )
    write_script(
        tmp_path / 'scontrol',
        '#!/usr/bin/env bash\n'
        '[[ $* == "show hostnames node[3-4]" ]] || exit 1\n'
        'printf "127.0.0.1\\nnode4\\n"\n',
    )
    write_script(
        tmp_path / 'recorded_python',
        '#!/usr/bin/env bash\n'
        f'printf "%s\\n" "$@" > {tmp_path}/python$NODE_RANK.txt\n'
        f'exec {sys.executable} "$@"\n',
    )
    return tmp_path


def test_two_machines_of_a_slurm_job_train_one_model(toy, cluster):
    # The number of a job leads to a port from 20000 to 29999.
    port = free_port()
    status, output = run(
        toy,
        *('bash', TOOLS / 'slurm_train.sh'),
        *('gpus', 'a-job', 'toy.py', 'work_slurm'),
        *('--cfg-options', 'randomness.seed=3'),
        PATH=f'{cluster}:{os.environ["PATH"]}',
        PYTHON=str(cluster / 'recorded_python'),
        GPUS='2',
        GPUS_PER_NODE='1',
        CPUS_PER_TASK='3',
        SRUN_ARGS='--quotatype=spot --time=1:00:00',
        SLURM_JOB_ID=str(7_000_000 + port - 20000),
    )
    assert status == 0, output
    # Four images, two machines, two images each at a time: one step.
    assert 'Epoch(train) [1][1/1]' in output
    assert (toy / 'work_slurm' / 'epoch_1.pth').is_file()

    asked = (cluster / 'srun.txt').read_text().splitlines()
    assert asked[: asked.index('bash')] == [
        '--partition=gpus',
        '--job-name=a-job',
        '--nodes=2',
        '--ntasks=2',
        '--ntasks-per-node=1',
        '--gres=gpu:1',
        '--cpus-per-task=3',
        '--kill-on-bad-exit=1',
        '--quotatype=spot',
        '--time=1:00:00',
    ]
    for rank in range(2):
        started = (cluster / f'python{rank}.txt').read_text().splitlines()
        assert started == [
            *(str(TOOLS / 'torchrun.py'), '--nnodes=2'),
            *(f'--node_rank={rank}', '--master_addr=127.0.0.1'),
            *(f'--master_port={port}', '--nproc_per_node=1'),
            *(str(TOOLS / 'train.py'), 'toy.py', '--launcher', 'pytorch'),
            *('--work-dir', 'work_slurm'),
            *('--cfg-options', 'randomness.seed=3'),
        ]


@pytest.mark.parametrize(
    'extra, message',
    [
        (dict(GPUS='12'), 'GPUS=12 does not fill machines of GPUS_PER_NODE=8'),
        (dict(GPUS='0'), "one is '0'; usage:"),
        (dict(CPUS_PER_TASK='many'), "one is 'many'; usage:"),
        (dict(), 'there is no srun here; without SLURM use'),
    ],
    ids=['uneven', 'zero', 'word', 'no-srun'],
)
def test_slurm_request_that_cannot_be_met_is_refused(extra, message, tmp_path):
    for command in ('bash', 'dirname'):
        path = Path('/usr/bin') / command
        (tmp_path / command).symlink_to(
            path if path.exists() else Path('/bin') / command
        )
    status, output = run(
        tmp_path,
        *('bash', TOOLS / 'slurm_train.sh', 'gpus', 'a-job', 'c.py', 'work'),
        **{'PATH': str(tmp_path), **extra},
    )
    assert status == 2
    assert message in output


def wait_for(path, process):
    end = time.monotonic() + SECONDS
    while not path.is_file():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f'{path} did not come'
        time.sleep(0.1)


def test_killed_training_goes_on_from_its_last_checkpoint(toy, warm_python):
    work = toy / 'work_killed'
    command = [
        *(str(TOOLS / 'train.py'), 'toy.py'),
        *('--work-dir', str(work), '--cfg-options'),
        *('default_hooks.logger.interval=1', 'val_dataloader=None'),
        *('val_cfg=None', 'val_evaluator=None'),
    ]
    with subprocess.Popen(
        [sys.executable, *command, 'train_cfg.max_epochs=100000'],
        cwd=toy,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        wait_for(work / 'last_checkpoint', process)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    saved = Path((work / 'last_checkpoint').read_text())
    done = int(saved.stem.removeprefix('epoch_'))
    assert read_weights(saved)['meta']['iter'] == 2 * done

    last = done + 2
    status, output = run(
        *(toy, warm_python.path, *command),
        *(f'train_cfg.max_epochs={last}', '--resume'),
    )
    assert status == 0, output
    assert f'resumed epoch: {done}, iter: {2 * done}' in output
    trained = [
        line.partition('Epoch(train)')[2].split()[0]
        for line in output.splitlines()
        if 'Epoch(train)' in line
    ]
    assert trained == [
        f'[{epoch}][{step}/2]' for epoch in (done + 1, last) for step in (1, 2)
    ]
    finished = read_weights(work / f'epoch_{last}.pth')
    assert finished['meta']['iter'] == 2 * last
    steps = {
        int(state['step']) for state in finished['optimizer']['state'].values()
    }
    assert steps == {2 * last}


def test_python_without_torch_is_a_line():
    # Without `site` there are no packages.
    command = [sys.executable, '-IS', TOOLS / 'torchrun.py']
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f'torchrun: {sys.executable} has no torch')
