"""No name or number of a figure is cut, or covers another."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from ..tools.test_train_test import TOOLS, load_tool

pytest.importorskip('matplotlib', reason='matplotlib is not installed')

RESULTS = TOOLS / 'paper' / 'results'
# Letters have bearings: boxes may touch by so many of 1600 pixels.
SLACK = 1.0


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Runs figures.py with arguments; gives the figure, unwritten."""
    main = load_tool('paper/figures', monkeypatch).main
    from drawing import style

    figures = []
    monkeypatch.setattr(
        style, 'write', lambda figure, path: figures.append(figure)
    )

    def run(*arguments):
        assert main([*map(str, arguments), '-o', str(tmp_path / 'a.png')]) == 0
        return figures.pop()

    return run


def is_drawn(text, axis):
    """Whether a label of a tick lies between the limits of its axis."""
    low, high = sorted(axis.get_view_interval())
    return low <= text.get_position()[axis.axis_name == 'y'] <= high


def texts_of(figure):
    """The texts that are drawn, tick labels beyond the limits left out."""
    from matplotlib.text import Text

    left_out = {
        text
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for minor in (False, True)
        for text in axis.get_ticklabels(minor=minor)
        if not (axes.axison and is_drawn(text, axis))
    }
    found = [text for text in figure.findobj(Text) if text not in left_out]
    return [t for t in found if t.get_visible() and t.get_text().strip()]


def check(figure):
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    frame = figure.bbox
    boxes = []
    for text in texts_of(figure):
        box = text.get_window_extent(renderer)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
        inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert inside, f'{text.get_text()!r} is cut'
        boxes.append((text.get_text(), box.padded(-SLACK)))
    assert boxes
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), f'{one!r} covers {other!r}'


@pytest.mark.parametrize('arch', ['tiny', 'atto'])
def test_architecture(arch, drawn):
    figure = drawn('architecture', '--arch', arch, '--size', 608)
    check(figure)


def test_text_stays_in_its_box(drawn):
    from matplotlib.patches import FancyBboxPatch

    figure = drawn('architecture', '--arch', 'atto', '--size', 1024)
    renderer = figure.canvas.get_renderer()
    boxes = [
        patch.get_window_extent(renderer)
        for patch in figure.findobj(FancyBboxPatch)
    ]
    for text in texts_of(figure):
        extent = text.get_window_extent(renderer)
        middle = (extent.x0 + extent.x1) / 2, (extent.y0 + extent.y1) / 2
        around = [box for box in boxes if box.contains(*middle)]
        for box in around:
            assert box.x0 < extent.x0 and extent.x1 < box.x1, text


@pytest.mark.parametrize(
    'size, steps', [(8, (1, 2, 3, 4)), (12, (2, 3, 4, 5, 6, 7)), (16, (4,))]
)
def test_scan_order(size, steps, drawn):
    check(drawn('scan-order', '--size', size, '--steps', *steps))


def test_accuracy(drawn):
    check(drawn('accuracy'))


@pytest.mark.parametrize('scale', [1.0, 1e-4])
def test_curves(scale, drawn, tmp_path):
    """The last tick lies at the right border, the values are long."""
    lines = [
        json.dumps(dict(loss=scale * (4.0 / step), step=100 * step))
        for step in range(1, 101)
    ]
    path = tmp_path / 'scalars.json'
    path.write_text('\n'.join(lines))
    name = 'a run whose name is rather long for a legend'
    check(drawn('curves', f'{name}={path}', f'b={path}'))


@pytest.mark.parametrize('phase', ['inference', 'training'])
def test_throughput(phase, drawn):
    check(
        drawn(
            'throughput',
            RESULTS / 'benchmark' / 'h200.csv',
            *('--accuracy', RESULTS / 'benchmark' / 'top1.csv'),
            *('--mode', 'best', '--phase', phase, '--batch', 128),
            *('--size', 224),
        )
    )


def test_throughput_on_a_device_with_a_long_name(drawn, monkeypatch):
    from drawing import throughput

    from evmamba_mm.benchmark import rows

    read = rows.read
    name = 'NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition, MIG'
    monkeypatch.setattr(
        rows,
        'read',
        lambda path: [row | {'device': name} for row in read(path)],
    )
    assert throughput
    test_throughput('training', drawn)


def test_receptive_field(drawn, monkeypatch, tmp_path):
    """A long name of a config, and a wide map."""
    from drawing import erf, style

    figures = []
    monkeypatch.setattr(
        style, 'write', lambda figure, path: figures.append(figure)
    )
    field = SimpleNamespace(
        gradient=np.random.default_rng(0).random((800, 1344)),
        height=25,
        width=42,
        channels=1536,
        images=50,
    )
    boxes = [(0.5 - s, 0.5 + s, 0.5 - s, 0.5 + s) for s in (0.1, 0.2, 0.4)]
    name = 'cascade-mask-rcnn_evmamba-base_fpn-carafe_8xb2-amp-ms-crop-3x_coco'
    weights = (
        'cascade-mask-rcnn_evmamba-base_fpn-carafe_8xb2_coco_epoch_36.pth'
    )
    erf.draw_field(tmp_path / 'a.png', field, boxes, f'{name}\n{weights}')
    check(figures[0])


def test_the_few_colours_of_a_file_are_those_that_were_drawn(
    monkeypatch, tmp_path
):
    from PIL import Image

    main = load_tool('paper/figures', monkeypatch).main
    file = tmp_path / 'a.png'
    runs = RESULTS / 'curves'
    names = [f'{path.stem}={path}' for path in sorted(runs.glob('*.json'))]
    assert main(['curves', *names, '-o', str(file)]) == 0
    pixels = np.asarray(Image.open(file).convert('RGB')).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    white, grid = colours[np.argsort(-counts)[:2]].astype(int)
    assert white.tolist() == [255, 255, 255]
    assert np.abs(grid - 0xE2).max() <= 2
