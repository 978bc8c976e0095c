"""Writes a model for OpenVINO and compares the file with the model."""

import logging
import tempfile
from pathlib import Path

from torch import Tensor, nn

from ..whole_files import check_writable
from .compare import TOLERANCE, compare
from .dense import dense_model
from .onnx_file import write_onnx
from .program import TRACING, example, portable_copy

INSTALL_LINE = 'pip install "evmamba_mm[openvino]"'
_logger = logging.getLogger('evmamba_mm')


def _openvino():
    try:
        import openvino
    except ImportError as error:
        raise ImportError(
            f'OpenVINO files need openvino: {INSTALL_LINE}'
        ) from error
    return openvino


def openvino_outputs(
    file: str | Path, threads: int = 0, precision: str = 'f32'
):
    """Function of an image array that runs a file by OpenVINO on the CPU.

    Args:
        file: Path of an ``.xml`` or ``.onnx`` file.
        threads: Threads; 0 leaves it to OpenVINO.
        precision: 'f32' or 'bf16', in which the runtime computes.

    Raises:
        ValueError: If the precision is unknown.
        ImportError: If openvino is missing; it says how to install it.
    """
    if precision not in ('f32', 'bf16'):
        raise ValueError(
            f"precision must be 'f32' or 'bf16', got {precision!r}"
        )
    settings = {'INFERENCE_PRECISION_HINT': precision}
    if threads:
        settings['INFERENCE_NUM_THREADS'] = threads
    compiled = _openvino().Core().compile_model(str(file), 'CPU', settings)

    def run(image):
        found = compiled([image])
        return [found[i] for i in range(len(compiled.outputs))]

    return run


def export_openvino(
    model: nn.Module,
    file: str | Path,
    image: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> float:
    """Write a model for OpenVINO at a fixed size, and check the file.

    OpenVINO reads no Scan node, so that the scan is written out for the size
    of the example. The check runs in fp32.

    Args:
        model: See :func:`evmamba_mm.export.dense_model`; it is not changed.
        file: Path to write, ``.xml``; the weights lie beside it in ``.bin``.
        image: Example, (B, C, H, W); noise of 1x3x224x224 when None.
        tolerance: Largest error, relative to an output's largest value.

    Returns:
        The largest error that was found.

    Raises:
        ValueError: If an argument is illegal.
        RuntimeError: If the file's outputs are not those of the model.
        ImportError: If a package is missing; it says how to install it.
    """
    if Path(file).suffix != '.xml':
        raise ValueError(f'file must end in .xml for OpenVINO, got {file!s}')
    openvino = _openvino()
    check_writable(file)
    image = example(image)
    dense = portable_copy(dense_model(model), 'torch')
    with TRACING:
        with tempfile.TemporaryDirectory() as folder:
            onnx_file = Path(folder, 'model.onnx')
            write_onnx(dense, onnx_file, image, (), written_out=True)
            _logger.info('export: translating to OpenVINO')
            converted = openvino.convert_model(onnx_file)
            openvino.save_model(converted, str(file), compress_to_fp16=False)
        return compare(dense, openvino_outputs(file), [image], tolerance)
