"""Writes a model as ONNX and compares the file with the model."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..whole_files import check_writable
from .compare import TOLERANCE, compare, other_image
from .decompose import decompose_scans
from .dense import DenseModel, dense_model
from .program import TRACING, example, export_program, portable_copy

INSTALL_LINE = 'pip install "evmamba_mm[onnx]"'
_logger = logging.getLogger('evmamba_mm')


def write_onnx(
    model: DenseModel,
    file: Path,
    image: Tensor,
    dynamic: Sequence[str],
    written_out: bool,
    opset: int | None = None,
) -> None:
    """Write ONNX without comparing it; arguments as :func:`export_onnx`.

    Raises:
        ImportError: If onnx or onnxscript is missing; it says how to install.
        ValueError: If torch cannot write the opset.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f'ONNX files need onnx: {INSTALL_LINE}') from error
    with torch.no_grad():
        _logger.info('export: tracing the model')
        program = export_program(model, image, dynamic)
        names = list(model(image))
        _logger.info('export: writing the scans in ops of torch')
        program = decompose_scans(program, written_out)
        _logger.info('export: translating to ONNX')
        translated = torch.onnx.export(
            program,
            dynamo=True,
            input_names=['image'],
            output_names=names,
            opset_version=opset,
            verbose=False,
        )
    translated.save(file)
    onnx.checker.check_model(str(file), full_check=True)
    if opset is not None:
        stored = onnx.load(file, load_external_data=False)
        found = {x.domain: x.version for x in stored.opset_import}['']
        # Torch only logs that it has failed to convert to an older one.
        if found != opset:
            raise ValueError(
                f'opset {opset} cannot be written for this model, got {found}'
            )


def _onnxruntime():
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f'running an ONNX file needs onnxruntime: {INSTALL_LINE}'
        ) from error
    return onnxruntime


def onnx_outputs(file: str | Path, threads: int = 0):
    """Function of an image array that runs an ONNX file by onnxruntime.

    Args:
        file: Path of the ONNX file.
        threads: Threads of an op; 0 leaves it to onnxruntime.

    Raises:
        ImportError: If onnxruntime is missing; it says how to install it.
    """
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(file), options, providers=['CPUExecutionProvider']
    )

    def run(image):
        return session.run(None, {'image': image})

    return run


def export_onnx(
    model: nn.Module,
    file: str | Path,
    image: Tensor | None = None,
    dynamic: Sequence[str] = ('batch', 'height', 'width'),
    written_out: bool = False,
    tolerance: float = TOLERANCE,
    opset: int | None = None,
) -> float:
    """Write a model as ONNX, and check the file against the model.

    The file is checked by onnx's checker and run by onnxruntime on the
    example and, where a size is dynamic, on images of another size.

    Args:
        model: See :func:`dense_model`; it is not changed.
        file: Path to write, ``.onnx``.
        image: Example, (B, C, H, W); noise of 1x3x224x224 when None.
        dynamic: Sizes that stay open; the others are the example's.
        written_out: Whether the file has no Scan node, for runtimes that
            refuse it; height and width must then be fixed.
        tolerance: Largest error, relative to an output's largest value.
        opset: Version of ONNX's operators; torch's own choice when None.

    Returns:
        The largest error that was found.

    Raises:
        ValueError: If an argument is illegal, or torch cannot write the opset.
        RuntimeError: If the file's outputs are not those of the model. The
            file is left for inspection.
        ImportError: If a package is missing; it says how to install it.
    """
    if written_out and {'height', 'width'} & set(dynamic):
        raise ValueError(
            'dynamic must not name height or width where the scan is written '
            f'out, got {tuple(dynamic)}'
        )
    check_writable(file)
    _onnxruntime()
    image = example(image)
    dense = portable_copy(dense_model(model), 'torch')
    with TRACING:
        write_onnx(dense, Path(file), image, dynamic, written_out, opset)
        images = [image, other_image(image, dynamic)]
        _logger.info('export: comparing the file with the model')
        return compare(dense, onnx_outputs(file), images, tolerance)
