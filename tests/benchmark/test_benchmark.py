"""The benchmark tool, on tiny sizes: what it does, never how fast it is."""

import sys

import pytest
import torch
from torch import nn

from evmamba_mm.benchmark import (
    classifiers,
    detection,
    iteration,
    models,
    modes,
    rows,
    scans,
    timing,
)

from .tool import ROOT, benchmark, run

for host in ('mmdet', 'mmpretrain'):
    pytest.importorskip(host, reason=f'{host} is not installed')

CPU = torch.device('cpu')
ATTO = 'EfficientVMamba:atto'


def row(model='a:b', mode='eager', phase='inference', ms=4.0, **changes):
    values = dict(
        batch=2,
        size='32',
        dtype='fp32',
        images_per_s=2000 / ms,
        peak_gib=None,
        device='CPU',
        torch='2',
        command='c',
    )
    return rows.Row(
        model=model, mode=mode, phase=phase, ms=ms, **values | changes
    )


def test_columns_are_those_that_are_promised():
    assert ','.join(rows.COLUMNS) == (
        'model,mode,phase,batch,size,dtype,images_per_s,ms,peak_gib,device,'
        'torch,command'
    )


def test_command_line_knows_the_values_that_the_code_knows():
    assert benchmark.MODES == modes.MODES
    assert benchmark.PHASES == modes.PHASES
    assert benchmark.DTYPES == tuple(modes.DTYPES)
    assert benchmark.SCAN_PHASES == scans.PHASES
    assert benchmark.ITERATION_MODES == iteration.MODES
    assert (ROOT / benchmark.DETECTOR).is_file()


def test_a_row_takes_the_place_of_its_older_self(tmp_path):
    path = tmp_path / 'new' / 'a.csv'
    rows.store(path, row(ms=4.0))
    rows.store(path, row(mode='graph', ms=2.0, peak_gib=1.5))
    rows.store(path, row(ms=8.0))
    stored = rows.read(path)
    assert [(r['mode'], r['ms']) for r in stored] == [
        ('eager', '8'),
        ('graph', '2'),
    ]
    assert [r['peak_gib'] for r in stored] == ['', '1.500']


@pytest.mark.parametrize('content', [None, '', 'model,mode\n'])
def test_a_file_that_is_no_measurement_is_refused(content, tmp_path, capsys):
    path = tmp_path / 'a.csv'
    if content is not None:
        path.write_text(content)
    assert run('table', path) == 2
    assert str(path) in capsys.readouterr().err


def test_table(tmp_path, capsys):
    path = tmp_path / 'a.csv'
    rows.store(path, row(ms=1.0))
    rows.store(path, row(phase='training', ms=50.0, peak_gib=2.25))
    rows.store(path, row('c:d', 'graph', ms=0.5))
    assert run('table', path) == 0
    assert capsys.readouterr().out.splitlines() == [
        '| model | batch | size | dtype | inference, eager | '
        'training, eager | inference, graph | peak, GiB |',
        '| --- | --- | --- | --- | ---: | ---: | ---: | ---: |',
        '| a:b | 2 | 32 | fp32 | 2,000 | 40 |  | 2.2 |',
        '| c:d | 2 | 32 | fp32 |  |  | 4,000 |  |',
    ]
    assert run('table', path, '--best') == 0
    assert '| 2,000 (eager) | 40 (eager) | 2.2 |' in capsys.readouterr().out


def test_measure_calls_with_rising_numbers():
    calls = []
    measured = timing.measure(calls.append, CPU, repeats=3)
    others = list(range(timing.OTHERS))
    assert calls[: timing.WARM_UP] == [0] * timing.WARM_UP
    assert calls[timing.WARM_UP :][: len(others)] == others
    assert calls[timing.WARM_UP + len(others) :] == [0] + [0] * 3
    assert measured.ms >= 0
    assert measured.peak_gib is None


@pytest.mark.parametrize(
    'name', ['tiny', 'torchvision:resnet50', 'timm:', 'EfficientVMamba:huge']
)
def test_unknown_model_is_refused_before_anything_runs(name, capsys):
    assert run('model', name) == 2
    assert repr(name) in capsys.readouterr().err


def test_absent_timm_is_told_with_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ImportError, match='pip install timm'):
        models.build_classifier('timm:resnet18')


@pytest.mark.parametrize('name', [ATTO, 'mmpretrain:resnet18_8xb32_in1k'])
def test_deployed_folds_and_keeps_the_outputs(name):
    torch.manual_seed(0)
    model = models.build_classifier(name).train()
    with torch.no_grad():
        model(torch.randn(8, 3, 32, 32))
    model.eval()
    made = modes.deployed(model, torch.float32, (32, 32))
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            made(image), model(image), rtol=1e-3, atol=1e-4
        )
    assert model(image).shape == (2, 1000)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in made.modules())


class NormAndActivation(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def test_a_model_that_folding_would_change_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), NormAndActivation(4)).eval()
    made = modes.deployed(model, torch.bfloat16, (8, 8))
    assert isinstance(made[1], NormAndActivation)
    assert made[0].weight.dtype == torch.bfloat16


@pytest.mark.parametrize('mode', ['eager', 'compiled'])
def test_training_gives_every_parameter_a_gradient(mode, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda m: compiled.append(m) or m)
    model = models.build_classifier(ATTO)
    step = modes.training(model, mode, torch.float32, 2, (32, 32), CPU)
    assert step(0).isfinite()
    assert all(p.grad is not None for p in model.parameters())
    assert len(compiled) == (mode == 'compiled')


def test_inputs_change_from_call_to_call():
    model = models.build_classifier(ATTO)
    call = modes.inference(model, 'eager', torch.float32, 1, (32, 32), CPU)
    assert not torch.equal(call(0), call(1))
    assert torch.equal(call(0), call(modes.INPUTS))


def test_failures_are_told_and_others_go_on(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(torch, 'compile', lambda model: model)
    path = tmp_path / 'a.csv'
    argv = f'model {ATTO} --batch 2 --size 32 --dtype fp32 --repeats 1'.split()
    argv += ['--mode', *modes.MODES, '--phase', *modes.PHASES]
    argv += ['--device', 'cpu', '--csv', path]
    assert run(*argv) == 1
    assert {(r['mode'], r['phase']) for r in rows.read(path)} == {
        ('eager', 'inference'),
        ('compiled', 'inference'),
        ('deployed', 'inference'),
        ('eager', 'training'),
        ('compiled', 'training'),
    }
    first = rows.read(path)[0]
    assert first['command'].startswith(
        f'python tools/analysis_tools/benchmark.py model {ATTO}'
    )
    assert float(first['images_per_s']) > 0
    told = capfd.readouterr().err
    assert f'{ATTO} graph inference batch 2 size 32 fp32: ValueError' in told
    assert "training: mode 'deployed' is for inference alone" in told


def test_absent_device_is_told(capsys):
    assert run('model', ATTO, '--device', 'cuda:77') == 2
    assert "--device 'cuda:77'" in capsys.readouterr().err


def test_sizes_say_how_the_cost_grows():
    linear = [row(size='32', ms=1.0), row(size='64', ms=4.0)]
    square = [row('c:d', size='32', ms=1.0), row('c:d', size='64', ms=16.0)]
    assert [x[-18:] for x in classifiers.growth(linear + square)] == [
        '32: 1.00, 64: 1.00',
        '32: 1.00, 64: 4.00',
    ]


@pytest.mark.parametrize(
    ('length', 'step', 'expected'),
    [(784, 2, (56, 56)), (6, 2, (4, 6)), (7, 1, (1, 7))],
)
def test_map_of_a_scan(length, step, expected):
    assert scans.sides(length, step) == expected


def test_scans_are_checked_then_timed(tmp_path):
    path = tmp_path / 'a.csv'
    argv = 'op --shape 2x4x8x9x4 --dtype fp32 bf16 --repeats 1 --device cpu'
    assert run(*argv.split(), '--csv', path) == 0
    found = {(r['model'], r['phase'], r['dtype']) for r in rows.read(path)}
    assert len(found) == 8
    assert ('es2d_scan:torch', 'backward', 'bf16') in found
    assert {r['size'] for r in rows.read(path)} == {'4x8x9x4'}


@pytest.mark.parametrize('wrong', ['value', 'gradient'])
def test_no_speed_of_a_wrong_scan(wrong, tmp_path, capsys, monkeypatch):
    right = scans.es2d_scan

    def es2d_scan(x, *args, backend, **others):
        y = right(x, *args, backend=backend, **others)
        if backend == 'naive':
            return y
        return y * 1.01 if wrong == 'value' else y + (x - x.detach())

    monkeypatch.setattr(scans, 'es2d_scan', es2d_scan)
    path = tmp_path / 'a.csv'
    argv = 'op --shape 2x4x8x9x4 --dtype fp32 --repeats 1 --device cpu'
    assert run(*argv.split(), '--csv', path) == 1
    assert not path.exists()
    told = capsys.readouterr().err
    assert "no speed is measured: es2d_scan by 'torch' in fp32" in told


def test_a_scan_that_cannot_run_here_fails_alone(tmp_path, capfd):
    path = tmp_path / 'a.csv'
    argv = 'op --shape 1x4x8x9x4 --dtype fp32 --repeats 1 --device cpu'
    scan = ['--scan', 'es2d_scan:mamba_ssm', 'es2d_scan:torch']
    assert run(*argv.split(), *scan, '--csv', path) == 1
    assert {r['model'] for r in rows.read(path)} == {'es2d_scan:torch'}
    assert 'es2d_scan:mamba_ssm eager forward' in capfd.readouterr().err


@pytest.mark.parametrize(
    'argv',
    ['--scan es2d_scan:fast', '--scan mamba_ssm', '--shape 1x3x8x9x4'],
)
def test_illegal_scans_are_refused(argv, capsys):
    assert run('op', '--device', 'cpu', *argv.split()) == 2
    assert 'error: ' in capsys.readouterr().err


def test_detection_measures_the_step_and_its_backbone(tmp_path):
    config = tmp_path / 'small.py'
    config.write_text(
        f'_base_ = {str(ROOT / benchmark.DETECTOR)!r}\n'
        "model = dict(backbone=dict(arch='atto'), "
        'neck=dict(in_channels=[16, 32, 64, 128]), '
        'train_cfg=dict(rpn_proposal=dict(max_per_img=50), '
        'rcnn=dict(sampler=dict(num=16))))\n'
    )
    path = tmp_path / 'a.csv'
    argv = '--batch 1 --size 64x96 --dtype fp32 --repeats 1 --device cpu'
    assert run('detection', config, *argv.split(), '--csv', path) == 0
    ms = {r['phase']: float(r['ms']) for r in rows.read(path)}
    assert set(ms) == set(detection.PHASES)
    assert 0 < ms['backbone in step']


def test_every_input_is_made_before_the_clock_runs():
    inputs = modes.INPUTS, scans.INPUTS, detection.INPUTS
    assert timing.OTHERS >= max(inputs)


def test_batches_are_made_when_they_are_asked_for():
    made = []
    batches = modes.Batches(lambda: made.append(len(made)) or len(made))
    assert batches[0] == batches[0] == batches[modes.INPUTS] == 1
    assert batches[modes.INPUTS + 1] == 2
    assert made == [0, 1]


def test_deployed_keeps_what_the_scan_reads_precise():
    made = modes.deployed(
        models.build_classifier(ATTO), torch.bfloat16, (32, 32)
    )
    mixer = made.backbone.stages[0][0].mixer
    assert mixer.in_proj.weight.dtype == torch.bfloat16
    assert mixer.A_logs.dtype == mixer.Ds.dtype == torch.float32
