import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from torch import nn

from evmamba_mm import ARCHS
from evmamba_mm.analysis import selective_scan_flops
from evmamba_mm.ops import selective_scan

from .ops.scan_cases import scan_arguments


class Scan(nn.Module):
    def forward(self, u, delta, A, B, C, D):
        return selective_scan(u, delta, A, B, C, D, backend='torch')


def test_scan_counts_by_the_formula():
    arguments = scan_arguments(2, 3, 5, 4, 37, dtype=torch.float32)
    arguments.pop('delta_bias')
    counted = get_model_complexity_info(
        Scan(), inputs=tuple(arguments.values()), show_table=False
    )
    assert counted['flops'] == 9 * 2 * 37 * 15 * 4 + 2 * 37 * 15
    assert counted['flops'] == selective_scan_flops(2, 37, 15, 4)


def classifier(arch):
    """The host's classifier, as the configs build it."""
    registry = pytest.importorskip('mmpretrain.registry').MODELS
    import mmpretrain.models  # noqa: F401

    width = ARCHS[arch].channels[-1]
    return registry.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='EfficientVMamba', arch=arch),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead', num_classes=1000, in_channels=width
            ),
        )
    )


@pytest.mark.parametrize(
    ('arch', 'gflops'), [('tiny', 0.8064), ('small', 1.3426), ('base', 3.9967)]
)
def test_classifier_flops(arch, gflops):
    counted = get_model_complexity_info(
        classifier(arch).eval(),
        (3, 224, 224),
        show_table=False,
        show_arch=False,
    )
    assert counted['flops'] / 1e9 == pytest.approx(gflops, abs=5e-5)
