import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement

from evmamba_mm import BatchCanvasPad

CANVASES = [(64, 128), (64, 96), (128, 64)]


def samples(shape):
    metainfo = dict(img_shape=shape, pad_shape=shape, batch_input_shape=shape)
    return [BaseDataElement(metainfo=metainfo) for _ in range(2)]


@pytest.mark.parametrize(
    ('size', 'canvas'),
    [
        ((64, 96), (64, 96)),
        ((60, 90), (64, 96)),
        ((64, 97), (64, 128)),
        ((100, 64), (128, 64)),
        ((100, 100), (100, 100)),
        ((32, 32), (32, 32)),
    ],
    ids=['equal', 'smallest', 'next', 'upright', 'none-fits', 'too-small'],
)
def test_a_batch_gets_the_smallest_canvas_that_holds_it(size, canvas):
    pad = BatchCanvasPad(CANVASES, pad_value=7)
    images = torch.rand(2, 3, *size)
    padded, found = pad(images, samples(size))
    assert padded.shape[-2:] == canvas
    torch.testing.assert_close(padded[..., : size[0], : size[1]], images)
    assert (padded[..., size[0] :, :] == 7).all()
    assert (padded[..., size[1] :] == 7).all()
    assert {x.batch_input_shape for x in found} == {canvas}
    # Anchors outside of the pad_shape are invalid.
    assert {x.pad_shape for x in found} == {size}
    assert {x.img_shape for x in found} == {size}


def test_a_batch_without_a_canvas_is_told_once(
    package_log,
):
    pad = MODELS.build(dict(type='BatchCanvasPad', canvases=CANVASES))
    for _ in range(2):
        pad(torch.rand(2, 3, 200, 64))
    assert package_log.text.count('a batch of 200x64 keeps its size') == 1
    assert '64x96, 64x128, 128x64' in package_log.text


@pytest.mark.parametrize('canvases', [[], [(64,)], [(64, 0)], [(64, 9.5)]])
def test_an_illegal_canvas_is_refused(canvases):
    with pytest.raises(ValueError, match='canvases must be pairs'):
        BatchCanvasPad(canvases)


def test_an_illegal_growth_is_refused():
    with pytest.raises(ValueError, match='max_growth must be at least 1'):
        BatchCanvasPad(CANVASES, max_growth=0.5)
