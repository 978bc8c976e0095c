"""Errors of the published sizes in other runtimes and in int8, on a CPU.

`measure` exports each size as a classifier and writes a row per size, runtime
and image: the largest difference to eager fp32, relative to the largest
output; with `--hosts` of RetinaNet, Mask R-CNN and UperNet in onnxruntime, up
to what `export.py` writes. `table` prints a CSV file in Markdown. int8 is
calibrated with noise: its rows tell how far the outputs move, not what a
trained model scores.
"""

import argparse
import copy
import math
import signal
import sys
import tempfile
from pathlib import Path

IMAGES = ((1, 3, 224, 224), (2, 3, 320, 256), (1, 3, 217, 333), (1, 3, 64, 64))
COLUMNS = ('arch', 'runtime', 'image', 'error')
CALIBRATION = 8
OPEN = ('batch', 'height', 'width')
CONFIGS = Path(__file__).parents[2] / 'configs'
DETECTION = ((1, 3, 512, 512), (1, 3, 800, 1344))
# Name, config, images, and whether height and width are open.
HOSTS = (
    (
        'RetinaNet',
        'mmdet/retinanet_evmamba-{}_fpn_8xb2-1x_coco.py',
        DETECTION,
        True,
    ),
    (
        'Mask R-CNN',
        'mmdet/mask-rcnn_evmamba-{}_fpn_8xb2-amp-1x_coco.py',
        DETECTION,
        True,
    ),
    (
        'UperNet',
        'mmseg/upernet_evmamba-{}_4xb4-160k_ade20k-512x512.py',
        ((1, 3, 512, 512), (2, 3, 512, 512)),
        False,
    ),
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = parser.add_subparsers(dest='task', required=True)
    measure = tasks.add_parser('measure', help='write a CSV file')
    measure.add_argument('csv', type=Path, metavar='CSV')
    measure.add_argument(
        '--archs', nargs='+', default=('tiny', 'small', 'base')
    )
    measure.add_argument(
        '--hosts', action='store_true', help='detectors and segmentors'
    )
    table = tasks.add_parser('table', help='print a CSV file as Markdown')
    table.add_argument('csv', type=Path, metavar='CSV')
    return parser.parse_args(argv)


def classifier(arch):
    """A classifier whose scans matter."""
    import torch

    from evmamba_mm.benchmark.models import build_classifier
    from evmamba_mm.export import DenseModel

    torch.manual_seed(0)
    model = build_classifier(f'EfficientVMamba:{arch}')
    spread(model)
    return DenseModel(model, lambda net, x: {'scores': net(x)}).eval()


def host_model(config):
    """The dense part of a config's model, whose scans matter."""
    import torch
    from mmengine.config import Config

    from evmamba_mm.apis import build_predictor
    from evmamba_mm.export import dense_model
    from evmamba_mm.export.program import portable_copy

    torch.manual_seed(0)
    cfg = Config.fromfile(config)
    cfg.model.backbone.pop('init_cfg', None)
    model = build_predictor(cfg, 'cpu').model
    spread(model)
    return portable_copy(dense_model(model), 'torch')


def spread(model):
    """Give the scans a part in the outputs, as training does.

    It is 1e-5 with the initial weights.
    """
    import torch
    from torch import nn

    for name, parameter in model.named_parameters():
        if 'dt_projs_bias' in name:
            nn.init.uniform_(parameter, -3, 1)
        elif 'A_logs' in name:
            parameter.data += torch.randn_like(parameter)
        elif 'in_proj' in name or 'conv2d' in name:
            parameter.data *= 10
        elif 'x_proj' in name:
            parameter.data *= 5


def onnx_errors(model, folder, images, names=OPEN):
    """Of one file at every size."""
    from evmamba_mm.export import onnx_outputs
    from evmamba_mm.export.onnx_file import write_onnx

    path = folder / 'open.onnx'
    write_onnx(model, path, images[0], names, False)
    run = onnx_outputs(path)
    for image in images:
        yield 'onnxruntime', image, run


def openvino_errors(model, folder, images):
    from evmamba_mm.export import openvino_outputs
    from evmamba_mm.export.onnx_file import write_onnx

    path = folder / 'fixed.onnx'
    write_onnx(model, path, images[0], (), True)
    for precision in ('f32', 'bf16'):
        run = openvino_outputs(path, None, precision)
        yield f'openvino {precision}', images[0], run


def torchao_errors(model, folder, images):
    import torch
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    for name, config in (
        ('torchao int8 weights', Int8WeightOnlyConfig()),
        ('torchao int8 dynamic', Int8DynamicActivationInt8WeightConfig()),
    ):
        quantised = copy.deepcopy(model)
        quantize_(quantised, config)
        yield (
            name,
            images[0],
            lambda image, net=quantised: net(torch.from_numpy(image)).values(),
        )


def static_errors(model, folder, images):
    """onnxruntime's static quantisation, of all it can and of convolutions."""
    import torch
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    from evmamba_mm.export import onnx_outputs

    class Noise(CalibrationDataReader):
        def __init__(self):
            torch.manual_seed(1)
            shape = images[0].shape
            self.left = [torch.randn(shape) for _ in range(CALIBRATION)]

        def get_next(self):
            return {'image': self.left.pop().numpy()} if self.left else None

    for name, kinds in (('all', None), ('convolutions', ['Conv'])):
        path = folder / f'{name}.onnx'
        quantize_static(
            folder / 'open.onnx', path, Noise(), op_types_to_quantize=kinds
        )
        yield f'onnxruntime static int8, {name}', images[0], onnx_outputs(path)


def nncf_errors(model, folder, images):
    """Of OpenVINO's quantisation; nothing without `pip install nncf`."""
    try:
        import nncf
    except ImportError:
        print('nncf is not installed: pip install nncf', file=sys.stderr)
        return
    import openvino
    import torch

    torch.manual_seed(1)
    noise = [torch.randn(images[0].shape).numpy() for _ in range(CALIBRATION)]
    read = openvino.Core().read_model(folder / 'fixed.onnx')
    quantised = nncf.quantize(
        read, nncf.Dataset(noise), subset_size=CALIBRATION
    )
    compiled = openvino.compile_model(quantised, 'CPU')
    yield (
        'openvino int8 by nncf',
        images[0],
        lambda image: list(compiled(image).values()),
    )


def classifier_errors(arch, folder):
    """Yields (runtime, image, function, model) of a size."""
    import torch

    model = classifier(arch)
    torch.manual_seed(2)
    images = [torch.randn(shape) for shape in IMAGES]
    for errors in (
        onnx_errors,
        openvino_errors,
        torchao_errors,
        static_errors,
        nncf_errors,
    ):
        for found in errors(model, folder, images):
            yield *found, model


def host_errors(arch, folder):
    """The same of detectors and a segmentor."""
    import torch

    for name, config, shapes, any_size in HOSTS:
        model = host_model(CONFIGS / config.format(arch))
        torch.manual_seed(2)
        images = [torch.randn(shape) for shape in shapes]
        names = OPEN if any_size else ('batch',)
        for runtime, *found in onnx_errors(model, folder, images, names):
            yield f'{runtime}, {name}', *found, model


def measure(args):
    from evmamba_mm.backbones import ARCHS
    from evmamba_mm.csv_files import write_rows
    from evmamba_mm.export.compare import compare
    from evmamba_mm.whole_files import check_writable

    for arch in args.archs:
        if arch not in ARCHS:
            raise ValueError(
                f'--archs must be one of {", ".join(ARCHS)}, got {arch!r}'
            )
    check_writable(args.csv)
    rows = []
    errors = host_errors if args.hosts else classifier_errors
    for arch in args.archs:
        with tempfile.TemporaryDirectory() as folder:
            for runtime, image, run, model in errors(arch, Path(folder)):
                error = compare(model, run, [image], math.inf)
                size = 'x'.join(map(str, image.shape))
                rows.append((arch, runtime, size, f'{error:.1e}'))
                print(*rows[-1], file=sys.stderr, flush=True)
                write_rows(args.csv, COLUMNS, rows)


def print_table(args):
    from evmamba_mm.csv_files import pivoted, read_rows

    rows = read_rows(args.csv, COLUMNS, ('error',))
    print(pivoted(rows, ('runtime', 'image'), ('arch',), 'error'))


def main(argv=None):
    args = parse_args(argv)
    try:
        (print_table if args.task == 'table' else measure)(args)
    except (ValueError, OSError, ImportError) as failure:
        print(f'error: {failure}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    # The reader of a pipe may leave, as `head` does. Windows has no signal.
    if hasattr(signal, 'SIGPIPE'):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
