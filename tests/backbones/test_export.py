"""torch.export of whole backbones, with sizes that stay open."""

import pytest
import torch
from torch.export import Dim, export

from evmamba_mm.backbones import EfficientVMamba, VMamba

MODELS = {
    'evmamba': lambda: EfficientVMamba('atto', out_indices=(0, 1, 2, 3)),
    'step3': lambda: EfficientVMamba('atto', step_size=3, out_indices=1),
    'vmamba': lambda: VMamba('atto', out_indices=(0, 1, 2, 3)),
}
BATCH = {0: Dim('batch', min=1, max=64)}
MULTIPLES = {
    2: 32 * Dim('rows', min=2, max=32),
    3: 32 * Dim('columns', min=2, max=32),
}
ANY = {
    2: Dim('height', min=64, max=1024),
    3: Dim('width', min=64, max=1024),
}
OPEN = {
    'nothing': ({}, (2, 3, 64, 64)),
    'batch': (BATCH, (5, 3, 64, 64)),
    'batch-and-multiples-of-32': (BATCH | MULTIPLES, (5, 3, 64, 96)),
    'batch-and-any-size': (BATCH | ANY, (5, 3, 75, 66)),
}
CASES = [
    ('step3', 'batch'),
    *((name, what) for name in ('evmamba', 'vmamba') for what in OPEN),
]


@pytest.mark.parametrize('gradients', [False, True], ids=['no-grad', 'grad'])
@pytest.mark.parametrize(('name', 'what'), CASES)
def test_exported_backbone_gives_the_same(name, what, gradients):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    dimensions, other = OPEN[what]
    image = torch.randn(2, 3, 64, 64)
    with torch.set_grad_enabled(gradients):
        program = export(
            model,
            (image,),
            dynamic_shapes={'image': dimensions},
            # Torch cannot prove that a norm of W // 4 columns never meets
            # an empty map.
            prefer_deferred_runtime_asserts_over_guards=dimensions != BATCH,
        )
        batches = (2, other[0], 1) if dimensions else (2,)
        for batch in batches:
            x = torch.randn(batch, *other[1:])
            torch.testing.assert_close(
                program.module()(x), model(x), rtol=1e-4, atol=1e-5
            )
