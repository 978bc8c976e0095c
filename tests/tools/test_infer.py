"""Runs of infer.py with the demonstration's models.

Their weights are random: the results mean nothing, and must equal those of
the hosts' own inferencers.
"""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import evmamba_mm  # noqa: F401

from .inference_cases import (
    CLASSES,
    NAMES,
    PALETTE,
    cv2,
    photo,
    read_clip,
    truncated,
    write,
    write_clip,
)

for host in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(host, reason=f'{host} is not installed')

ROOT = Path(__file__).parent.parent.parent
SCORE_THR = 0.12
CONFIGS = {
    'mmdet': 'mask-rcnn_*.py',
    'mmseg': 'upernet_*.py',
    'mmpretrain': 'evmamba-*.py',
}
every_host = pytest.mark.parametrize('host', CONFIGS)


@pytest.fixture(scope='module')
def infer():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / 'tools')
        # Some of its modules are imported when it runs.
        yield importlib.import_module('infer')


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """For each host a config, and a checkpoint that renames the classes."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    folder = tmp_path_factory.mktemp('models')
    found = {}
    for host, pattern in CONFIGS.items():
        (base,) = (ROOT / 'configs' / 'demo').glob(pattern)
        config = folder / f'{host}.py'
        model = f'model = dict({CLASSES[host]})\n'
        config.write_text(f'_base_ = {str(base)!r}\n{model}')
        cfg = Config.fromfile(config)
        init_default_scope(host)
        cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        torch.manual_seed(3)
        weights = MODELS.build(cfg.model).state_dict()
        count = 11 if host == 'mmseg' else 10
        meta = dict(classes=NAMES[:count], palette=PALETTE[:count])
        checkpoint = folder / f'{host}.pth'
        content = dict(state_dict=weights, meta=dict(dataset_meta=meta))
        torch.save(content, checkpoint)
        found[host] = (str(config), str(checkpoint))
    return found


def run(infer, *arguments):
    """Runs the tool; returns its exit status."""
    try:
        return infer.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def options(host):
    score = ['--score-thr', SCORE_THR] if host == 'mmdet' else []
    return ['--json', '--device', 'cpu', '--enlarge=1', *score]


def decode(mask):
    coco_mask = pytest.importorskip('pycocotools.mask')
    return coco_mask.decode(mask).astype(bool)


@pytest.fixture(scope='module', params=CONFIGS)
def folder_run(request, infer, models, tmp_path_factory):
    """(host, input folder, output folder) of a run with a broken image."""
    host = request.param
    folder = tmp_path_factory.mktemp(host)
    images = folder / 'in'
    for name, seed in (('a.png', 0), ('b.png', 1), ('sub/a.png', 2)):
        write(images / name, photo(seed))
    write(images / 'tall.jpg', photo(3, 100, 70))
    truncated(images / 'c.jpg')
    arguments = [*models[host], '--out-dir', folder / 'out', '--batch-size=2']
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(infer, 'in', *arguments, *options(host)) == 2
    return host, images, folder / 'out'


def records(folder):
    return {
        path.relative_to(folder).as_posix(): json.loads(path.read_text())
        for path in sorted(folder.rglob('*.json'))
    }


def test_folder_is_drawn_but_for_the_broken_image(folder_run):
    host, images, out = folder_run
    written = {
        path.relative_to(out).as_posix()
        for path in out.rglob('*')
        if path.is_file()
    }
    stems = ('a', 'b', 'sub/a', 'tall')
    pictures = {f'{s}.jpg' if s == 'tall' else f'{s}.png' for s in stems}
    assert written == pictures | {f'{stem}.json' for stem in stems}
    for name in pictures:
        before = cv2.imread(str(images / name))
        after = cv2.imread(str(out / name))
        if host == 'mmpretrain':
            assert min(after.shape[:2]) == 256
        else:
            assert after.shape == before.shape
            assert np.abs(after.astype(int) - before).max() > 50


def test_json_is_legal(folder_run):
    host, _, out = folder_run
    found = records(out)
    origins = ' '.join(record['image'] for record in found.values())
    assert origins == 'in/a.png in/b.png in/sub/a.png in/tall.jpg'
    tall = found['tall.json']
    assert (tall['width'], tall['height']) == (70, 100)
    for record in found.values():
        size = (record['height'], record['width'])
        if host == 'mmpretrain':
            check_names([record], 10)
            assert sum(record['scores']) == pytest.approx(1, abs=1e-5)
            assert record['score'] == max(record['scores'])
        elif host == 'mmseg':
            check_names(record['segments'], 11)
            masks = [decode(item['mask']) for item in record['segments']]
            assert (np.sum(masks, axis=0) == np.ones(size)).all()
            for item, mask in zip(record['segments'], masks, strict=True):
                assert item['pixels'] == mask.sum() > 0
        else:
            check_instances(record['instances'], size)
    if host == 'mmdet':
        assert any(record['instances'] for record in found.values())


def check_names(items, count):
    for item in items:
        assert 0 <= item['label'] < count
        assert item['class_name'] == NAMES[item['label']]


def check_instances(instances, size):
    check_names(instances, 10)
    height, width = size
    for item in instances:
        assert SCORE_THR < item['score'] <= 1
        left, top, right, bottom = item['bbox']
        assert -1e-3 <= left < right <= width + 1e-3
        assert -1e-3 <= top < bottom <= height + 1e-3
        assert decode(item['mask']).shape == size


def test_results_equal_those_of_the_hosts_inferencer(folder_run, models):
    host, images, out = folder_run
    found = records(out)
    paths = [str(images / name) for name in ('a.png', 'b.png', 'sub/a.png')]
    ours = [found[name] for name in ('a.json', 'b.json', 'sub/a.json')]
    config, checkpoint = models[host]
    if host == 'mmpretrain':
        from mmpretrain import ImageClassificationInferencer

        inferencer = ImageClassificationInferencer(config, checkpoint, 'cpu')
        for record, expected in zip(ours, inferencer(paths), strict=True):
            assert record['label'] == expected['pred_label']
            np.testing.assert_allclose(
                record['scores'], expected['pred_scores'], atol=1e-6
            )
    elif host == 'mmseg':
        from mmseg.apis import MMSegInferencer

        inferencer = MMSegInferencer(config, checkpoint, device='cpu')
        maps = inferencer(paths)['predictions']
        for record, expected in zip(ours, maps, strict=True):
            labels = sum(
                item['label'] * decode(item['mask']).astype(int)
                for item in record['segments']
            )
            assert np.mean(labels == expected) > 0.999
    else:
        compare_with_mmdet(ours, paths, config, checkpoint)


def compare_with_mmdet(ours, paths, config, checkpoint):
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(config, checkpoint, device='cpu')
    for record, path in zip(ours, paths, strict=True):
        (expected,) = inferencer(path)['predictions']
        kept = [i for i, s in enumerate(expected['scores']) if s > SCORE_THR]
        instances = record['instances']
        for key, plural in (
            ('label', 'labels'),
            ('score', 'scores'),
            ('bbox', 'bboxes'),
        ):
            np.testing.assert_allclose(
                np.array([item[key] for item in instances]),
                np.array([expected[plural][index] for index in kept]),
                atol=1e-3,
            )
        for index, item in zip(kept, instances, strict=True):
            theirs = decode(expected['masks'][index])
            assert np.mean(theirs == decode(item['mask'])) > 0.999


@every_host
def test_video_equals_its_frames(host, infer, models, tmp_path, capsys):
    folder = tmp_path / 'in'
    folder.mkdir()
    write_clip(folder / 'clip.avi', [photo(seed, 64, 96) for seed in range(5)])
    _, frames = read_clip(folder / 'clip.avi')
    for index, frame in enumerate(frames):
        write(folder / f'{index}.png', frame)
    out = tmp_path / 'out'
    arguments = [folder, *models[host], '--out-dir', out, '--batch-size=3']
    assert run(infer, *arguments, *options(host)) == 0
    assert '6 of 6 written' in capsys.readouterr().out
    fps, drawn = read_clip(out / 'clip.mp4')
    assert (fps, len(drawn)) == (7.5, 5)
    lines = (out / 'clip.jsonl').read_text().splitlines()
    assert len(lines) == 5
    for index, line in enumerate(lines):
        record = json.loads(line)
        assert record.pop('video') == (folder / 'clip.avi').as_posix()
        assert record.pop('frame') == index
        alone = records(out)[f'{index}.json']
        del alone['image']
        assert record == approximately(alone)
        still = cv2.imread(str(out / f'{index}.png')).astype(int)
        # Codecs are lossy.
        assert np.abs(drawn[index] - still).mean() < 15


def approximately(value):
    if isinstance(value, float):
        return pytest.approx(value, abs=1e-3)
    if isinstance(value, dict):
        return {key: approximately(child) for key, child in value.items()}
    if isinstance(value, list):
        return [approximately(child) for child in value]
    return value


def test_picture_without_detections_equals_the_input(infer, models, tmp_path):
    folder = tmp_path / 'in'
    red = np.full((64, 64, 3), (10, 40, 220), np.uint8)
    write(folder / 'red.png', red)
    write_clip(folder / 'clip.avi', [red] * 2)
    out = tmp_path / 'out'
    arguments = [folder, *models['mmdet'], '--score-thr=1', '--out-dir', out]
    assert run(infer, *arguments, '--enlarge=1') == 0
    assert (cv2.imread(str(out / 'red.png')) == red).all()
    _, frames = read_clip(out / 'clip.mp4')
    assert np.abs(frames[0].astype(int) - red).max() < 12
    assert not records(out)


@pytest.mark.parametrize('source', ['none', 'load_from', 'model', 'backbone'])
def test_random_weights_are_never_silent(
    source, infer, models, tmp_path, capsys
):
    config, checkpoint = models['mmpretrain']
    pretrained = f"dict(type='Pretrained', checkpoint={checkpoint!r}"
    lines = {
        'none': '',
        'load_from': f'load_from = {checkpoint!r}',
        'model': f'model = dict(init_cfg={pretrained}))',
        'backbone': 'model = dict(backbone=dict('
        f"init_cfg={pretrained}, prefix='backbone.', _delete_=True)))",
    }
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = [{config!r}]\n{lines[source]}\n')
    image = write(tmp_path / 'a.png', photo(0))
    out = tmp_path / 'out'
    arguments = [image, child, '--json', '--out-dir', out]
    assert run(infer, *arguments) == 0
    errors = capsys.readouterr().err
    random = source in ('none', 'backbone')
    assert ('WARNING: NO CHECKPOINT GIVEN' in errors) is random
    assert ('RANDOM' in errors) is random
    assert ('model.backbone' in errors) is (source == 'backbone')
    if not random:
        scores = records(out)['a.json']['scores']
        capsys.readouterr()
        arguments = [image, config, checkpoint, '--json', '--out-dir', out]
        assert run(infer, *arguments) == 0
        assert 'NO CHECKPOINT' not in capsys.readouterr().err.upper()
        np.testing.assert_allclose(
            records(out)['a.json']['scores'], scores, atol=1e-6
        )


class Exploit:
    def __reduce__(self):
        return print, ('the checkpoint ran code',)


def save_exploit(path):
    torch.save(dict(state_dict={}, meta=Exploit()), path)
    return path


@pytest.mark.parametrize(
    'host, checkpoint, extra, message',
    [
        ('mmpretrain', 'other', [], 'does not fit the model of the config: '),
        ('mmpretrain', 'text', [], 'text'),
        ('mmpretrain', 'exploit', [], 'loading it could run code'),
        ('mmpretrain', None, ['load_from=no.pth'], "'no.pth': there is no"),
        ('mmseg', None, ['default_scope=mmpose'], 'legal are mmpretrain, mm'),
        ('mmseg', None, ['--score-thr', '0.5'], '--score-thr is for detect'),
        ('mmdet', None, ['modle=1'], "did you mean 'model'"),
        ('mmpretrain', None, ['--no-labels'], '--labels is not for class'),
        ('mmseg', None, ['--palette', 'objects'], 'objects is for detection'),
    ],
    ids='misfit text exploit load_from scope thr key labels objects'.split(),
)
def test_unusable_model_is_refused(
    host, checkpoint, extra, message, infer, models, tmp_path, capsys
):
    if extra and '=' in extra[0]:
        extra = ['--cfg-options', *extra]
    (tmp_path / 'text').write_text('no checkpoint')
    files = {
        'other': models['mmseg'][1],
        'text': tmp_path / 'text',
        'exploit': save_exploit(tmp_path / 'exploit'),
    }
    given = [files[checkpoint]] if checkpoint else []
    image = write(tmp_path / 'a.png', photo(0))
    out = tmp_path / 'out'
    arguments = [image, models[host][0], *given, '--out-dir', out, *extra]
    assert run(infer, *arguments) == 1
    captured = capsys.readouterr()
    assert 'error: ' in captured.err
    assert message in captured.err
    assert 'ran code' not in captured.out
    assert not out.exists()


def test_nothing_but_broken_files(infer, models, tmp_path, capsys):
    for name in ('a.png', 'b.mp4'):
        (tmp_path / name).write_text('broken')
    out = tmp_path / 'out'
    arguments = [tmp_path, *models['mmpretrain'], '--out-dir', out]
    assert run(infer, *arguments) == 1
    errors = capsys.readouterr().err
    assert f'skipped {tmp_path / "a.png"}: it holds no image' in errors
    assert f'skipped {tmp_path / "b.mp4"}: it cannot be opened' in errors
    assert not out.exists()


def test_image_that_the_model_refuses_is_skipped(
    infer, models, tmp_path, capsys
):
    for index in range(3):
        write(tmp_path / f'{index}.png', photo(index, 64, 64))
    write(tmp_path / '1.png', np.zeros((2, 64, 3), np.uint8))
    out = tmp_path / 'out'
    config, checkpoint = models['mmpretrain']
    child = tmp_path / 'child.py'
    child.write_text(
        f'_base_ = [{config!r}]\n'
        "steps = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]\n"
        'test_dataloader = dict(dataset=dict(pipeline=steps))\n'
    )
    arguments = [tmp_path, child, checkpoint, '--out-dir', out]
    assert run(infer, *arguments) == 2
    errors = capsys.readouterr().err
    assert f'skipped {tmp_path / "1.png"}: the image must be' in errors
    assert sorted(path.name for path in out.iterdir()) == ['0.png', '2.png']
