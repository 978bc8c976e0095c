"""Models for other runtimes, each file checked against its model.

export_onnx(model, 'model.onnx')
export_openvino(model, 'model.xml')
program = export_program(dense_model(model), image)
"""

from .decompose import decompose_scans
from .dense import DenseModel, dense_model
from .onnx_file import export_onnx, onnx_outputs
from .openvino_file import export_openvino, openvino_outputs
from .program import export_program

__all__ = [
    'DenseModel',
    'decompose_scans',
    'dense_model',
    'export_onnx',
    'export_openvino',
    'export_program',
    'onnx_outputs',
    'openvino_outputs',
]
