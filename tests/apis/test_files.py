"""The parts of infer.py: arguments, inputs, reading, names, batches."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from evmamba_mm.apis import outcomes, sources, weights

from ..tools.inference_cases import photo, touch, truncated, write

pytest.importorskip('mmcv', reason='mmcv is not installed')
media = pytest.importorskip('evmamba_mm.apis.media')
run = pytest.importorskip('evmamba_mm.apis.run')

TOOLS = Path(__file__).parent.parent.parent / 'tools'


def planned(text, out_dir):
    collected = sources.collect(str(text), Path(out_dir))
    return sources.plan(collected, Path(out_dir))


def targets(text, out_dir):
    return [
        source.target.relative_to(out_dir).as_posix()
        for source in planned(text, out_dir)
    ]


@pytest.mark.parametrize(
    'text, expected',
    [
        ('in/a.jpg', ['a.jpg']),
        ('in/b.BMP', ['b.png']),
        ('in/clip.avi', ['clip.mp4']),
        ('in', ['a.jpg', 'b.png', 'clip.mp4', 'sub/a.jpg', 'sub/c.jpg']),
        ('in/*.jpg', ['a.jpg']),
        ('in/**/*.jp*', ['a.jpg', 'sub/a.jpg', 'sub/c.jpg']),
        ('in/[ab].*', ['a.jpg', 'b.png']),
        ('odd/x[1].png', ['x[1].png']),
    ],
)
def test_inputs_and_where_their_results_go(
    text, expected, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / 'in', 'a.jpg', 'b.BMP', 'clip.avi', 'notes.txt')
    touch(tmp_path / 'in', 'sub/a.jpg', 'sub/c.jpeg', '.hidden/a.jpg')
    touch(tmp_path, 'odd/x[1].png')
    assert targets(text, 'out') == expected


def test_results_inside_the_input_folder_are_no_inputs(tmp_path):
    touch(tmp_path, 'a.png', 'results/a.png', 'results/sub/b.png')
    assert targets(tmp_path, tmp_path / 'results') == ['a.png']


def test_links_and_pipes_of_a_folder_are_told(tmp_path):
    touch(tmp_path, 'a.png', 'notes.txt', 'sub/b.png')
    (tmp_path / 'lost.jpg').symlink_to(tmp_path / 'nowhere.jpg')
    (tmp_path / 'loop.png').symlink_to(tmp_path / 'loop.png')
    os.mkfifo(tmp_path / 'pipe.png')
    for text in (tmp_path, tmp_path / '**'):
        found = sources.collect(str(text), tmp_path / 'results')
        names = {path.name for path in found.paths}
        assert names == {'a.png', 'b.png', 'lost.jpg', 'loop.png'}
        assert found.left_out == 2


def test_same_stem_keeps_the_full_name(tmp_path):
    touch(tmp_path / 'in', 'a.jpg', 'a.bmp', 'a.mp4', 'b/a.jpg')
    sources = planned(tmp_path / 'in', tmp_path / 'out')
    names = {source.target.name for source in sources}
    assert names == {'a.jpg.jpg', 'a.bmp.png', 'a.mp4.mp4', 'a.jpg'}
    assert len({source.json_path for source in sources}) == 4


@pytest.mark.parametrize(
    'text, out_dir, message',
    [
        ('none.jpg', 'out', "'none.jpg' does not exist"),
        ('in/notes.txt', 'out', r'unknown extension; images are \.jpg'),
        ('empty', 'out', 'without images or videos, 1 other files'),
        ('in/*.tiff', 'out', r"'in/\*\.tiff' matches no image"),
        ('in/*.txt', 'out', 'no image or video, 1 other files match'),
        ('in/a.jpg', 'in/notes.txt', 'is a file, not a folder'),
        ('in/a.jpg', 'in', 'lie in the folder of the input'),
        ('in', 'in', 'lie in the folder of the input'),
        ('clash', 'out', "both be written to 'out/a.jpg.json'"),
    ],
)
def test_unusable_input_is_refused(
    text, out_dir, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, 'in/a.jpg', 'in/notes.txt', 'empty/notes.txt')
    touch(tmp_path, 'clash/a.jpg', 'clash/a.png', 'clash/a.jpg.png')
    with pytest.raises(ValueError, match=message):
        planned(text, out_dir)


def test_broken_image_is_told_from_a_whole_one(tmp_path):
    whole = write(tmp_path / 'whole.png', photo(0))
    image = media.read_image(whole)
    np.testing.assert_array_equal(image, photo(0)[..., ::-1])
    (tmp_path / 'empty.png').touch()
    (tmp_path / 'text.png').write_text('no image')
    for name, reason in {
        'half.jpg': 'truncated',
        'half.png': 'truncated',
        'empty.png': 'empty',
        'text.png': 'no image',
        'none.png': 'No such file',
    }.items():
        if name.startswith('half'):
            truncated(tmp_path / name)
        with pytest.raises(media.BrokenInputError, match=reason):
            media.read_image(tmp_path / name)


def fake_model(count):
    return SimpleNamespace(
        decode_head=[None, SimpleNamespace(num_classes=count)]
    )


@pytest.mark.parametrize(
    'checkpoint, classes, expected, warned',
    [
        ({'dataset_meta': {'classes': 'ab'}}, 'cd', 'ab', False),
        ({'CLASSES': 'ab'}, 'cd', 'ab', False),
        ({}, 'cd', 'cd', False),
        ({'dataset_meta': {'classes': 'abc'}}, 'cd', 'cd', True),
        ({}, 'cde', ['class 0', 'class 1'], True),
        ({}, None, ['class 0', 'class 1'], True),
    ],
    ids=['stored', 'old', 'config', 'misfit', 'misfits', 'nowhere'],
)
def test_class_names_come_from_what_fits_the_model(
    checkpoint, classes, expected, warned, capsys
):
    from mmengine.config import Config
    from mmengine.registry import Registry

    metainfo = dict(classes=classes and list(classes))
    dataset = dict(type='Unknown', metainfo=metainfo)
    cfg = Config(dict(test_dataloader=dict(dataset=dataset)))
    meta = weights.find_meta(
        fake_model(2), checkpoint, cfg, Registry('dataset'), False
    )
    assert meta.classes == tuple(expected)
    assert len(set(meta.palette)) == 2
    assert ('WARNING' in capsys.readouterr().err) is warned


class FakePredictor:
    """Prepares an image to its size, refuses some, and logs its batches."""

    def __init__(self):
        self.batches = []

    def prepare(self, image):
        if image == 'unprepared':
            raise ValueError(image)
        return torch.zeros(len(image)), image

    def predict(self, prepared):
        names = [name for _, name in prepared]
        if 'bad' in names:
            raise RuntimeError('bad')
        self.batches.append(names)
        return [name.upper() for name in names]


def test_batches_hold_one_size_and_survive_a_bad_input():
    names = ['one', 'two', 'six', 'four', 'unprepared', 'bad', 'ten', 'red']
    predictor = FakePredictor()
    items = [(index, None, name) for index, name in enumerate(names)]
    found = {
        outcome.key: outcome
        for outcome in outcomes.predictions(items, predictor, 2)
    }
    assert [' '.join(batch) for batch in predictor.batches] == [
        'one two',
        'six',
        'four',
        'ten',
        'red',
    ]
    for index, name in enumerate(names):
        error = found[index].error
        if name in ('unprepared', 'bad'):
            assert str(error) == name
        else:
            assert (error, found[index].sample) == (None, name.upper())


@pytest.mark.parametrize(
    'name, kind, count',
    [
        *(('a.png', 'PNG', 3), ('a.webp', 'WEBP', 3), ('a.tiff', 'TIFF', 3)),
        # OpenCV goes by the content.
        ('a.bmp', 'GIF', 3),
        *(('b.png', 'PNG', 1), ('a.jpg', 'JPEG', 1), ('b.jpg', 'MPO', 3)),
    ],
)
def test_further_pictures_of_a_file_are_told(
    name, kind, count, tmp_path, capsys
):
    first, *others = (
        Image.new('RGB', (8, 8), (60 * index, 0, 0)) for index in range(count)
    )
    more = dict(save_all=True, append_images=others) if others else {}
    first.save(tmp_path / name, kind, **more)
    (source,) = planned(tmp_path / name, tmp_path / 'out')
    assert len(list(run.Run(None, 1, False).readable([source]))) == 1
    told = f'note: {source.path} holds 3 pictures; the first is used'
    said = capsys.readouterr().err.splitlines()
    if count == 1 or kind == 'MPO':
        assert not said
    else:
        (line,) = said
        assert line.startswith(told)
