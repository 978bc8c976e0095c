"""Exported models against the models, in the runtimes that are installed."""

import pytest
import torch
from torch import nn

from evmamba_mm.backbones import EfficientVMamba
from evmamba_mm.export import (
    decompose_scans,
    dense_model,
    export_onnx,
    export_openvino,
    export_program,
    onnx_outputs,
)
from evmamba_mm.export.compare import compare

SIZES = [(1, 3, 64, 64), (2, 3, 96, 80), (1, 3, 73, 111)]
SMALL = dict(
    arch=dict(channels=(16, 32), depths=(1, 1)),
    block_types=('evss', 'inverted_residual'),
    out_indices=(0, 1),
)


def small(step_size=2):
    torch.manual_seed(0)
    return EfficientVMamba(step_size=step_size, **SMALL).eval()


def ss2d():
    torch.manual_seed(0)
    return EfficientVMamba(**SMALL | dict(block_types=('ss2d', 'evss'))).eval()


def scans_left(program):
    return [n for n in program.graph.nodes if 'evmamba_mm' in str(n.target)]


@pytest.mark.parametrize('written_out', [False, True], ids=['loop', 'fixed'])
@pytest.mark.parametrize(
    'model', [small(), small(3), ss2d()], ids=['step2', 'step3', 'ss2d']
)
def test_decomposed_program_is_the_model(model, written_out):
    image = torch.randn(1, 3, 73, 111)
    program = export_program(dense_model(model), image, dynamic=())
    assert scans_left(program)
    program = decompose_scans(program, written_out)
    assert scans_left(program) == []
    compare(
        dense_model(model),
        lambda x: [*program.module()(torch.from_numpy(x)).values()],
        [image],
        1e-5,
    )


def test_model_is_left_as_it_was():
    model = small().train()
    state = {name: x.clone() for name, x in model.state_dict().items()}
    export_program(dense_model(model), torch.randn(1, 3, 64, 64), ['batch'])
    assert model.training
    assert model.stages[0][0].mixer.backend == 'auto'
    for name, x in model.state_dict().items():
        assert torch.equal(x, state[name])


@pytest.mark.parametrize(
    'image, dynamic, said',
    [
        (torch.zeros(1, 3, 64, 64), ['length'], "got \\['length'\\]"),
        (torch.zeros(1, 3, 64, 64), 'batch', 'must be a list'),
        (torch.zeros(3, 64, 64), [], r'\(B, C, H, W\)'),
        (torch.zeros(1, 3, 32, 64), ['height'], '64 to 8192'),
    ],
)
def test_illegal_example_is_refused(image, dynamic, said):
    with pytest.raises(ValueError, match=said):
        export_program(dense_model(small()), image, dynamic)


def test_model_without_dense_part_is_refused():
    with pytest.raises(ValueError, match='got Linear'):
        dense_model(nn.Linear(1, 1))


def test_one_onnx_file_serves_every_size(tmp_path):
    pytest.importorskip('onnxscript', reason='onnxscript is not installed')
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    model, file = small(), tmp_path / 'small.onnx'
    assert export_onnx(model, file, torch.randn(1, 3, 75, 91)) < 1e-5
    images = [torch.randn(size) for size in SIZES]
    compare(dense_model(model), onnx_outputs(file), images, 1e-5)
    with pytest.raises(RuntimeError, match="'map0' of the exported file"):
        compare(dense_model(model), onnx_outputs(file), images, 0.0)


def test_open_sizes_of_a_written_out_scan_are_refused(tmp_path):
    with pytest.raises(ValueError, match='must not name height or width'):
        export_onnx(small(), tmp_path / 'a.onnx', None, ['height'], True)


def test_openvino_file_is_the_model(tmp_path):
    pytest.importorskip('onnxscript', reason='onnxscript is not installed')
    pytest.importorskip('openvino', reason='openvino is not installed')
    file, image = tmp_path / 'small.xml', torch.randn(1, 3, 73, 111)
    assert export_openvino(small(), file, image) < 1e-4
    with pytest.raises(ValueError, match='must end in .xml'):
        export_openvino(small(), tmp_path / 'small.onnx', image)


@pytest.mark.parametrize('kind', ['weight-only', 'dynamic'])
def test_torchao_quantises_the_linear_layers(kind):
    quantization = pytest.importorskip(
        'torchao.quantization', reason='torchao is not installed'
    )
    config = {
        'weight-only': quantization.Int8WeightOnlyConfig,
        'dynamic': quantization.Int8DynamicActivationInt8WeightConfig,
    }[kind]
    model, image = small(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        quantization.quantize_(model, config())
        found = model(image)
    for x, y in zip(found, expected, strict=True):
        assert not torch.equal(x, y)
        assert (x - y).norm() < 0.05 * y.norm()
