import numpy as np
import pytest
import torch

from evmamba_mm import BatchRandomErasing

from .test_augment import LAYOUTS, images_of

COLOURS = {
    'const': dict(mode='const', fill_color=(1, 2, 3)),
    'uniform': dict(mode='rand', fill_color=(1, 2, 3)),
    'normal': dict(
        mode='rand', fill_color=(90, 120, 160), fill_std=(60, 20, 40)
    ),
}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('colours', COLOURS)
def test_rectangles_are_erased(colours, layout, device):
    erasing = BatchRandomErasing(0.7, **COLOURS[colours])
    images = images_of(12, 45, 52, device, layout)
    before = images.clone()
    random = np.random.default_rng(1)
    chosen, boxes = erasing.draw(len(images), (45, 52), random)
    found = erasing.erase_by_kernel(images, chosen, boxes, random)
    assert torch.equal(images, before), 'the input was changed'
    assert found.is_contiguous(memory_format=LAYOUTS[layout])
    left, parts = before.clone(), []
    for i, (top, y, bottom, x) in zip(chosen, boxes, strict=True):
        parts.append(found[i, :, top:bottom, y:x].flatten(1))
        left[i, :, top:bottom, y:x] = found[i, :, top:bottom, y:x]
    assert torch.equal(left, found), 'it erased more'
    first, second = (part[:, :20] for part in parts[:2])
    assert torch.equal(first, second) == (colours == 'const')
    # The same distribution as torch's, of each channel.
    pixels = torch.cat(parts, 1).float().cpu()
    torch.manual_seed(0)
    part = torch.zeros(1, 3, 200, 200, dtype=torch.uint8)
    expected = torch.where(part == 0, erasing._colours(part), part)
    for own, other in zip(pixels, expected[0].flatten(1).float(), strict=True):
        # Four standard deviations of the mean of 4000 pixels.
        assert own.mean() == pytest.approx(float(other.mean()), abs=5)
        assert own.std() == pytest.approx(float(other.std()), abs=4)
    if colours != 'const':
        assert (torch.corrcoef(pixels).triu(1).abs() < 0.08).all()
