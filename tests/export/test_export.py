"""Exported models against the models, in the runtimes that are installed."""

import copy
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from evmamba_mm.backbones import EfficientVMamba
from evmamba_mm.deploy import fuse
from evmamba_mm.export import (
    decompose_scans,
    dense_model,
    export_onnx,
    export_openvino,
    export_program,
    onnx_outputs,
)
from evmamba_mm.export.compare import compare
from evmamba_mm.export.program import portable_copy

SIZES = [(1, 3, 64, 64), (2, 3, 96, 80), (1, 3, 73, 111)]
IMAGE = torch.zeros(1, 3, 64, 64)
SMALL = dict(
    arch=dict(channels=(16, 32), depths=(1, 1)),
    block_types=('evss', 'inverted_residual'),
    out_indices=(0, 1),
)


def with_a_scan_that_matters(model):
    """Gives the scan a part in the outputs, as training does.

    It has one of 1e-5 in a model with the weights of its initialisation.
    """
    for name, parameter in model.named_parameters():
        if 'dt_projs_bias' in name:
            nn.init.uniform_(parameter, -3, 1)
        if 'A_logs' in name:
            parameter.data += torch.randn_like(parameter)
        if 'in_proj' in name or 'conv2d' in name:
            parameter.data *= 10
        if 'x_proj' in name:
            parameter.data *= 5
    return model.eval()


def small(step_size=2, **options):
    torch.manual_seed(0)
    options = SMALL | options
    model = EfficientVMamba(step_size=step_size, **options)
    return with_a_scan_that_matters(model)


def ss2d():
    return small(block_types=('ss2d', 'evss'))


@pytest.mark.parametrize('model', [small(), ss2d()], ids=['es2d', 'ss2d'])
def test_comparisons_see_the_scan(model):
    torch.manual_seed(0)
    image = torch.randn(8, 3, 64, 64)
    silent = copy.deepcopy(model)
    for name, parameter in silent.named_parameters():
        if 'x_proj' in name:
            nn.init.zeros_(parameter)
    with torch.no_grad():
        for x, y in zip(model(image), silent(image), strict=True):
            assert (x - y).abs().max() > 0.05 * x.abs().max()


def scans_left(program):
    return [n for n in program.graph.nodes if 'evmamba_mm' in str(n.target)]


@pytest.mark.parametrize('written_out', [False, True], ids=['loop', 'fixed'])
@pytest.mark.parametrize(
    'model', [small(), small(3), ss2d()], ids=['step2', 'step3', 'ss2d']
)
def test_decomposed_program_is_the_model(model, written_out):
    torch.manual_seed(0)
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


def test_any_state_of_a_model_is_exported_in_fp32():
    # As a model that was trained on a GPU and is served in half precision.
    model = small(fused=True, scan_backend='cuda', with_cp=True)
    model = fuse(model, torch.bfloat16).train()
    image = torch.randn(1, 3, 64, 64)
    program = export_program(dense_model(model), image, dynamic=())
    program = decompose_scans(program, written_out=True)
    compare(
        portable_copy(dense_model(model), 'torch'),
        lambda x: [*program.module()(torch.from_numpy(x)).values()],
        [image],
        1e-5,
    )
    assert model.training and model.fused is True
    assert model.stages[0][0].mixer.backend == 'cuda'


def test_threads_take_turns():
    def nodes(_):
        program = export_program(dense_model(small()), IMAGE, dynamic=())
        return len(decompose_scans(program, written_out=True).graph.nodes)

    with ThreadPoolExecutor(2) as threads:
        assert len({*threads.map(nodes, range(2))}) == 1


def test_an_output_of_zeros_is_no_error():
    model = dense_model(small())
    nn.init.zeros_(model.model.norm0.weight)
    images = [torch.randn(1, 3, 64, 64)]

    def run(image):
        return [x.numpy() for x in model(torch.from_numpy(image)).values()]

    assert compare(model, run, images, 1e-6) == 0
    with pytest.raises(RuntimeError, match="'map0'"):
        compare(model, lambda x: [y + 1e-6 for y in run(x)], images, 1e-5)


@pytest.mark.parametrize('count', [2, 3])
def test_a_head_with_a_third_output_is_exported(count):
    head = nn.Module()
    head.forward = lambda maps: (maps,) * count
    detector = nn.Module()
    detector.bbox_head, detector.extract_feat = head, lambda x: (x, x)
    names = list(dense_model(detector)(torch.zeros(1)))
    assert names[:4] == ['scores0', 'scores1', 'boxes0', 'boxes1']
    assert names[4:] == ['other0', 'other1'][: 2 * (count - 2)]
    head.forward = lambda maps: (maps,)
    with pytest.raises(ValueError, match='Module has 1 outputs'):
        dense_model(detector)(torch.zeros(1))


class Queries(nn.Module):
    def forward(self, maps, queries):
        return maps, queries


@pytest.mark.parametrize('head', [Queries(), nn.Module()], ids=['2', 'none'])
@pytest.mark.parametrize('name', ['rpn_head', 'bbox_head', 'decode_head'])
def test_a_head_that_reads_more_than_maps_is_refused(name, head):
    model = nn.Module()
    model.extract_feat = lambda x: (x, x)
    setattr(model, name, head)
    kind = type(head).__name__
    with pytest.raises(ValueError, match=f'{kind} computes nothing from feat'):
        export_program(dense_model(model), IMAGE, dynamic=())


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


def test_the_opset_is_the_one_that_is_asked_for(tmp_path):
    pytest.importorskip('onnxscript', reason='onnxscript is not installed')
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    model, file = small(), tmp_path / 'small.onnx'
    assert export_onnx(model, file, IMAGE, (), opset=21) < 1e-5
    assert onnx.load(file).opset_import[0].version == 21
    with pytest.raises(ValueError, match='opset 17 cannot be written'):
        export_onnx(model, file, IMAGE, (), opset=17)


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


def test_aotinductor_compiles_a_program_with_open_sizes(tmp_path):
    inductor = pytest.importorskip('torch._inductor')
    if not hasattr(inductor, 'aoti_load_package'):
        pytest.skip('this torch packs no compiled programs')
    pytest.importorskip('numba', reason='numba is not installed')
    if shutil.which('g++') is None:
        pytest.skip('there is no compiler')
    one = dict(channels=(16,), depths=(1,))
    model = small(arch=one, block_types=('evss',), out_indices=(0,))
    program = export_program(dense_model(model), torch.randn(2, 3, 96, 96))
    file = str(tmp_path / 'model.pt2')
    inductor.aoti_compile_and_package(program, package_path=file)
    run = inductor.aoti_load_package(file)
    compare(
        dense_model(model),
        lambda x: [*run(torch.from_numpy(x)).values()],
        [torch.randn(1, 3, 64, 64), torch.randn(3, 3, 75, 91)],
        1e-5,
    )


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
