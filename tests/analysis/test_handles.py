import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from torch import nn

from evmamba_mm import ARCHS
from evmamba_mm.analysis import selective_scan_flops
from evmamba_mm.ops import es2d_scan, selective_scan, ss2d_scan

from ..ops.scan.scan_cases import map_parameters, scan_arguments


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


class MapScan(nn.Module):
    def __init__(self, scan, options):
        super().__init__()
        self.scan, self.options = scan, options

    def forward(self, x, *parameters):
        return self.scan(x, *parameters, **self.options)


@pytest.mark.parametrize('backend', ['torch', 'numba'])
@pytest.mark.parametrize(
    ('scan', 'readings', 'options'),
    [
        (es2d_scan, 1, dict(step_size=1)),
        (es2d_scan, 1, dict(step_size=2)),
        (ss2d_scan, 4, {}),
        (ss2d_scan, 2, dict(directions=('rows', 'columns_reversed'))),
        (ss2d_scan, 5, dict(directions=('rows',) * 5)),
    ],
)
def test_every_reading_of_a_map_counts(scan, readings, options, backend):
    if backend == 'numba':
        pytest.importorskip('numba')
    sets = options.get('step_size', 2) ** 2 if scan is es2d_scan else readings
    p = map_parameters(sets, channels=5, states=4, rank=3)
    with torch.no_grad():
        counted = get_model_complexity_info(
            MapScan(scan, dict(options, backend=backend)),
            inputs=(torch.zeros(2, 4, 6, 5), *p.values()),
            show_table=False,
        )
    cells = readings * 2 * 4 * 6
    projections = cells * 5 * (11 + 3)
    scans = selective_scan_flops(1, cells, 5, 4)
    assert counted['flops'] == projections + scans


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
