"""The figures: what they are drawn from, and that they are written."""

import importlib
import itertools

import numpy as np
import pytest

from ..tools.test_train_test import TOOLS, load_tool

pytest.importorskip('matplotlib', reason='matplotlib is not installed')
CONFIGS = TOOLS.parent / 'configs'
TABLE = TOOLS / 'paper' / 'results' / 'paper' / 'table2.csv'
MOST_BYTES = 200_000


@pytest.fixture
def room(monkeypatch):
    """Gives a module of the folder `figures`."""
    monkeypatch.syspath_prepend(TOOLS / 'paper')
    return lambda name: importlib.import_module(f'drawing.{name}')


@pytest.fixture
def main(monkeypatch):
    return load_tool('paper/figures', monkeypatch).main


def groups_by_hand(size, step_size):
    """The groups as the paper slices them, odd row offsets by columns."""
    side = range(-(-size // step_size) * step_size)
    for j, i in itertools.product(range(step_size), repeat=2):
        rows, columns = side[i::step_size], side[j::step_size]
        if i % 2 == 0:
            yield tuple((row, column) for row in rows for column in columns)
        else:
            yield tuple((row, column) for column in columns for row in rows)


@pytest.mark.parametrize('size', [5, 8])
@pytest.mark.parametrize('step_size', [1, 2, 3, 4])
def test_groups_are_those_of_the_slices(size, step_size, room):
    reading = room('scan_order').read_es2d(size, step_size)
    assert reading.sequences == tuple(groups_by_hand(size, step_size))
    assert reading.padded == -(-size // step_size) * step_size
    assert len(reading.sets) == step_size**2


def test_each_direction_of_ss2d_reads_every_cell(room):
    every = set(itertools.product(range(6), repeat=2))
    readings = room('scan_order').read_ss2d(6)
    (by_row,), (by_column,), (backward,), (upward,) = (
        reading.sequences for reading in readings
    )
    assert by_row == tuple(sorted(every))
    assert by_column == tuple(sorted(every, key=lambda cell: cell[::-1]))
    assert (backward, upward) == (by_row[::-1], by_column[::-1])


def test_trace_has_the_shapes_of_the_arch(room):
    from evmamba_mm import ARCHS

    trace = room('trace').Trace('atto', 64)
    for index, channels in enumerate(ARCHS['atto'].channels):
        side = 64 // 4 // 2**index
        expected = (1, side, side, channels)
        assert trace.shape(f'stages.{index}.0') == expected
    assert trace.output == expected
    assert trace.width('stages.0.0.mixer.in_proj') == 4 * 16
    assert trace.kind('stages.0.0.mixer') == 'ES2D'
    whole = sum(p.numel() for p in trace.model.parameters())
    parts = ('patch_embed', 'stages', 'downsamples', 'norm3')
    assert trace.parameters(*parts) == whole


def write_table(folder, text):
    file = folder / 'table.csv'
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    'text, message',
    [
        ('model,top1\nA,1\n', 'has no column flops_g; it has model, top1'),
        ('model,flops_g,top1\n', 'has no rows'),
        ('model,flops_g,top1\nA,one,2\n', "line 2: .*got 'one' and '2'"),
        ('', 'has no column model, flops_g, top1; it has none'),
    ],
    ids=['column', 'rows', 'number', 'empty'],
)
def test_unusable_table_is_refused(text, message, room, tmp_path):
    file = write_table(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        room('tables').read_points(file)


def test_families_are_sorted_and_ours_is_last(room):
    tables = room('tables')
    points = [
        tables.Point('EfficientVMamba-B', 4.0, 81.8),
        tables.Point('EfficientVMamba-T', 0.8, 76.5),
        tables.Point('LVT', 0.9, 74.8),
    ]
    families = room('accuracy').families_of(points)
    assert list(families) == ['LVT', 'EfficientVMamba']
    flops = [point.flops for point in families['EfficientVMamba']]
    assert flops == [0.8, 4.0]


def test_no_name_of_the_paper_covers_another(room, monkeypatch, tmp_path):
    labels, kept = room('labels'), []
    original = labels.place_labels

    def place(axis, texts, points, preferred):
        original(axis, texts, points, preferred)
        kept.extend(text.get_window_extent() for text in texts)
        kept.append(axis.get_window_extent())

    accuracy = room('accuracy')
    monkeypatch.setattr(accuracy, 'place_labels', place)
    accuracy.draw(tmp_path / 'a.png', TABLE)
    *boxes, frame = kept
    assert len(boxes) == len(TABLE.read_text().splitlines()) - 1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


@pytest.mark.parametrize('figure', ['accuracy', 'scan-order', 'architecture'])
def test_figure_is_written_wide_and_small(figure, main, tmp_path):
    from PIL import Image

    file = tmp_path / 'new' / 'figure.png'
    assert main([figure, '-o', str(file)]) == 0
    assert Image.open(file).width == 1600
    assert file.stat().st_size < MOST_BYTES


def test_figure_can_be_a_vector(main, tmp_path):
    file = tmp_path / 'scan.svg'
    assert main(['scan-order', '-o', str(file)]) == 0
    assert '<svg' in file.read_text()


@pytest.fixture
def pictures(tmp_path):
    """Three pictures, one of another shape."""
    from PIL import Image

    random = np.random.default_rng(0)
    folder = tmp_path / 'pictures'
    (folder / 'inside').mkdir(parents=True)
    for name, shape in {
        'a.png': (96, 96),
        'b.png': (96, 128),
        'inside/c.png': (96, 96),
    }.items():
        pixels = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.mark.parametrize(
    'config, package',
    [
        ('evmamba-atto_1xb16-15e_cells', 'mmpretrain'),
        ('mask-rcnn_evmamba-atto_fpn_1xb8-8e_nuclei', 'mmdet'),
        ('upernet_evmamba-atto_1xb8-8e_nuclei-128x128', 'mmseg'),
    ],
    ids=['classification', 'detection', 'segmentation'],
)
def test_receptive_field_of_each_host(config, package, main, pictures, capsys):
    pytest.importorskip(package, reason=f'{package} is not installed')
    file = pictures.parent / 'erf.png'
    arguments = [str(CONFIGS / 'demo' / f'{config}.py'), f'-o={file}']
    assert main(['erf', *arguments, f'--images={pictures}']) == 0
    said = capsys.readouterr()
    assert 'All weights are RANDOM' in said.err
    assert '99% of the gradient lies in' in said.out
    assert file.stat().st_size < MOST_BYTES


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['scan-order', '-o', 'a.jpg'], "'a.jpg' must end in one of .png"),
        (['scan-order', '-o', 'a.png', '--steps', '9'], 'from 1 to --size 8'),
        (['architecture', '-o', 'a.png', '--arch', 'x'], 'one of atto, tiny'),
        (['accuracy', '-o', 'a.png', '--table', 'x.csv'], "no file 'x.csv'"),
    ],
    ids=['suffix', 'step', 'arch', 'table'],
)
def test_mistake_is_told_in_a_line(arguments, message, main, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith('error: ')
    assert message in said


@pytest.mark.parametrize(
    'options, message',
    [
        (['--images=none'], "'none' is no folder"),
        (['--images={}/empty'], 'holds no image'),
        (['--images={}', '--crop=4096'], 'more than the smallest image'),
        (['--images={}', '--stage=7'], '--stage 7: the backbone returns 1'),
    ],
    ids=['folder', 'empty', 'crop', 'stage'],
)
def test_mistake_about_a_receptive_field(
    options, message, main, pictures, capsys
):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    (pictures / 'empty').mkdir()
    config = CONFIGS / 'demo' / 'evmamba-atto_1xb16-15e_cells.py'
    options = [option.format(pictures) for option in options]
    assert main(['erf', str(config), '-o', 'never.png', *options]) == 2
    assert message in capsys.readouterr().err
