"""Peers run at their best, and the best is what is compared."""

import pytest
import torch
from torch import nn

from evmamba_mm.benchmark import models, modes, rows, warming

for host in ('mmdet', 'mmpretrain'):
    pytest.importorskip(host, reason=f'{host} is not installed')

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


def test_a_model_is_compiled_as_it_is_measured(monkeypatch):
    calls = []

    def compiled(model, device):
        model.register_forward_hook(lambda m, x, y: calls.append(y.shape))
        return model

    monkeypatch.setattr(modes, 'compiled', compiled)
    for phase in modes.PHASES:
        warming.compile_once(ATTO, phase, 2, 32, 'fp32', 'cpu')
    assert calls == [(2, 1000)] * warming.CALLS * 2


def test_what_cannot_be_compiled_ahead_is_told(capfd):
    pytest.importorskip('timm', reason='timm is not installed')
    case = ['timm:resnet19'], ['inference'], [1], [32], ['fp32']
    assert warming.warm(2, *case, CPU) == ['timm:resnet19 inference 1 32 fp32']
    told = capfd.readouterr().err
    assert 'not compiled: timm:resnet19 inference 1 32 fp32: ValueErr' in told
