"""Bad images of the script, and a machine that is out of memory."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

for host in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(host, reason=f'{host} is not installed')

from evmamba_mm.apis import limits, predict, sources  # noqa: E402
from evmamba_mm.apis.inference import give_weights  # noqa: E402
from evmamba_mm.apis.run import Run  # noqa: E402

from .images import (  # noqa: E402
    CONFIGS,
    GOOD_PNG,
    ROOT,
    holds,
    kinds,
    legal_json,
    predictor_of,
    spoiled,
)

SMALL = (
    *('1x3200.png', '1x1000.png', '1x1.png', '7x900.png', 'bomb.png'),
    *('half.jpg', 'pipe.png', 'device.png', 'link to itself.png'),
)


@pytest.fixture(scope='module', params=CONFIGS)
def predictor(request):
    return predictor_of(request.param)


@pytest.mark.parametrize('name', SMALL)
def test_one_image_does_not_end_the_run(name, predictor):
    assert holds(predictor, kinds()[name], name) is None


def run_over(names, predictor, tmp_path, batch_size=1):
    folder = tmp_path / 'in'
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(GOOD_PNG)
    run = Run(predictor, batch_size, write_json=True)
    out = tmp_path / 'out'
    run.process(sources.plan(sources.collect(str(folder), out), out))
    return out


@pytest.mark.parametrize(
    'error',
    [
        MemoryError('Unable to allocate 9 GiB'),
        torch.OutOfMemoryError('CUDA out of memory'),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize('step', ['prepare', 'predict', 'draw'])
def test_an_image_without_memory_is_skipped(
    step, error, predictor, tmp_path, monkeypatch, capsys
):
    function, calls = getattr(predictor, step), []

    def fails_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise error
        return function(*arguments)

    monkeypatch.setattr(predictor, step, fails_once)
    out = run_over(('a.png', 'b.png'), predictor, tmp_path)
    assert sorted(p.name for p in out.iterdir()) == ['b.json', 'b.png']
    said = capsys.readouterr().err
    assert f'a.png: not enough memory: {error}' in said
    assert 'Traceback' not in said


def test_a_batch_without_memory_runs_image_by_image(
    predictor, tmp_path, monkeypatch
):
    function = predictor.predict

    def small_alone(prepared):
        if len(prepared) > 1:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return function(prepared)

    monkeypatch.setattr(predictor, 'predict', small_alone)
    out = run_over(('a.png', 'b.png'), predictor, tmp_path, batch_size=2)
    assert len(list(out.glob('*.png'))) == 2


def test_nan_in_weights_is_said_once_and_json_is_legal(tmp_path, capsys):
    from mmengine.config import Config

    (config,) = (ROOT / 'configs' / 'demo').glob(CONFIGS['classification'])
    broken = spoiled(predictor_of('classification'))
    checkpoint = tmp_path / 'nan.pth'
    torch.save(dict(state_dict=broken.model.state_dict()), checkpoint)
    give_weights(broken, Config.fromfile(config), str(checkpoint), False)
    out = run_over(('a.png', 'b.png'), broken, tmp_path)
    said = capsys.readouterr().err
    assert said.count('hold infinities or NaN') == 1
    assert 'backbone.patch_embed.conv.weight' in said
    texts = [path.read_text() for path in out.glob('*.json')]
    assert len(texts) == 2
    for text in texts:
        assert legal_json(text)
        assert json.loads(text)['score'] is None


def test_a_slender_picture_is_not_enlarged_without_bound(predictor):
    (outcome,) = predict(predictor, [np.zeros((900, 7, 3), np.uint8)])
    if outcome.error is None:
        image = np.zeros((900, 7, 3), np.uint8)
        assert max(predictor.draw(image, outcome.sample).shape) <= 4096


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((1, 1001), 'one side may be at most 1000 times the other'),
        ((20000, 20000), 'at most 89478485 are read'),
    ],
)
def test_arrays_are_checked_as_files_are(shape, message, predictor):
    image = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (*shape, 3))
    (outcome,) = predict(predictor, [image])
    with pytest.raises(ValueError, match=message):
        raise outcome.error


@pytest.mark.parametrize('image', [None, 3, [1, 2]])
def test_what_is_no_image_is_skipped(image, predictor):
    (outcome,) = predict(predictor, [image])
    with pytest.raises(ValueError, match='image must be a path or an array'):
        raise outcome.error


@pytest.mark.parametrize('name', ['pipe.png', 'device.png'])
def test_a_pipe_is_refused_as_the_input(name, tmp_path):
    path = tmp_path / name
    kinds()[name](path)
    with pytest.raises(ValueError, match='is no file: a pipe or a device'):
        sources.collect(str(path), Path('out'))


def test_limits_hold_for_the_sides_alone():
    limits.check_sides(1, 1000)
    limits.check_sides(9000, 9000)
    limits.check_sides(1, 1)
