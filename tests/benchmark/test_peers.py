"""Peers run at their best, and the best is what is compared."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from evmamba_mm.benchmark import models, modes, rows, warming

for host in ('mmdet', 'mmpretrain'):
    pytest.importorskip(host, reason=f'{host} is not installed')

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'tools' / 'analysis_tools' / 'benchmark.py'
spec = importlib.util.spec_from_file_location('benchmark_peers', SCRIPT)
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)
CPU = torch.device('cpu')
ATTO = 'EfficientVMamba:atto'


def row(model='a:b', mode='eager', phase='inference', ms=4.0):
    values = dict(model=model, mode=mode, phase=phase, ms=f'{ms:g}')
    values.update(batch='2', size='32', dtype='fp32', device='CPU')
    return values | dict(images_per_s=f'{2000 / ms:g}', peak_gib='')


def test_table_of_the_fastest_modes():
    measured = [
        *(row(mode='eager', ms=4.0), row(mode='graph', ms=2.0)),
        *(row(mode='compiled', ms=8.0), row(phase='training', ms=50.0)),
        row('c:d', 'compiled', ms=0.5),
    ]
    text = rows.markdown(measured, 'images_per_s', only_best=True)
    assert text.splitlines()[2:] == [
        '| a:b | 2 | 32 | fp32 | 1,000 (graph) | 40 (eager) |  |',
        '| c:d | 2 | 32 | fp32 | 4,000 (compiled) |  |  |',
    ]


def test_a_model_that_timm_lacks_is_told():
    pytest.importorskip('timm', reason='timm is not installed')
    with pytest.raises(ValueError, match="has no model 'resnet19'.*install"):
        models.build_classifier('timm:resnet19')


def test_models_of_several_branches_are_merged_for_inference():
    pytest.importorskip('timm', reason='timm is not installed')
    model = models.build_classifier('timm:repvit_m0_9').eval()
    made = modes.deployed(model, torch.float32, (32, 32))
    assert len([*made.modules()]) < len([*model.modules()])
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            made(image), model(image), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize('phase', modes.PHASES)
def test_others_run_channels_last(phase):
    seen = []
    make = dict(inference=modes.inference, training=modes.training)[phase]
    for name in (ATTO, 'mmpretrain:resnet18_8xb32_in1k'):
        model = models.build_classifier(name)
        call = make(model, 'eager', torch.float32, 2, (32, 32), CPU)
        first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        first.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
        call(0)
        weight = first.weight
        order = torch.channels_last
        assert weight.is_contiguous(memory_format=order) is (name != ATTO)
    assert not seen[0].is_contiguous(memory_format=torch.channels_last)
    assert seen[1].is_contiguous(memory_format=torch.channels_last)


def test_what_cannot_be_compiled_ahead_is_told(capfd):
    show = "import os; assert os.environ['TORCHINDUCTOR_COMPILE_THREADS']"
    commands = {
        'good': [sys.executable, '-c', show],
        'bad': [sys.executable, '-c', "raise SystemExit('error: no model')"],
        'dead': [sys.executable, '-c', 'raise SystemExit(3)'],
    }
    assert sorted(warming.warm(commands, 2)) == ['bad', 'dead']
    told = capfd.readouterr().err
    assert 'not compiled: bad: error: no model' in told
    assert 'not compiled: dead: exit 3' in told


def test_each_model_and_phase_is_compiled_by_itself():
    argv = f'model {ATTO} timm:a --phase inference training --batch 1 8'
    args = benchmark.parse_args([*argv.split(), '--warm', '2'])
    commands = benchmark.compilations(args, CPU)
    assert list(commands) == [
        *(f'{ATTO} inference', f'{ATTO} training'),
        *('timm:a inference', 'timm:a training'),
    ]
    for command in commands.values():
        own = benchmark.parse_args(command[2:])
        assert (own.mode, own.batch, own.warm) == (['compiled'], [1, 8], None)
    assert own.models == ['timm:a']
