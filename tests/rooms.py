"""What each room of the package may import."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Room:
    """What the files of one room may import besides the standard library.

    `within` names rooms of the package, `outside` other packages, and
    `single` a file of the room that may import a further package or room.
    """

    within: tuple[str, ...]
    outside: tuple[str, ...]
    single: tuple[tuple[str, str], ...] = ()
    modules_allowed: bool = True


ROOMS = {
    'ops': Room(
        within=('ops', 'ops/scan'),
        outside=('torch',),
        modules_allowed=False,
    ),
    'ops/scan': Room(
        within=('ops', 'ops/scan', 'arguments'),
        outside=('torch',),
        single=(
            ('cuda', 'ops/scan/cuda/compiler'),
            ('numba', 'ops/scan/numba_kernels'),
            ('numpy', 'ops/scan/numba_kernels'),
            ('mamba_ssm', 'ops/scan/mamba_scan'),
            ('selective_scan_cuda', 'ops/scan/mamba_scan'),
            ('ops/triton', 'ops/scan/cuda/projection'),
            ('ops/triton', 'ops/scan/cuda/host'),
        ),
        modules_allowed=False,
    ),
    'ops/triton': Room(
        within=('ops', 'ops/triton'),
        outside=('torch', 'triton'),
        modules_allowed=False,
    ),
    'layers': Room(
        within=('ops', 'ops/scan', 'layers', 'arguments'), outside=('torch',)
    ),
    'fast': Room(
        within=('ops', 'ops/scan', 'ops/triton', 'layers', 'fast'),
        outside=('torch',),
    ),
    'backbones': Room(
        within=('layers', 'fast', 'backbones', 'arguments', 'checkpoint'),
        outside=('torch', 'mmengine'),
    ),
    'hub': Room(
        within=('hub', 'apis', 'backbones', 'checkpoint', 'compat'),
        outside=('torch', 'mmengine', 'huggingface_hub', 'timm'),
    ),
    'compat': Room(
        within=('compat', 'resuming', 'weight_files'),
        outside=('numpy', 'torch', 'torchvision', 'mmengine'),
    ),
    'data': Room(
        within=('data', 'ops/triton'),
        outside=(
            *('numpy', 'torch', 'mmengine', 'rich', 'cv2', 'PIL'),
            'mmpretrain',
        ),
    ),
    # What writes or runs a file is imported when it is asked for.
    'export': Room(
        within=('export', 'layers', 'ops/scan', 'backbones', 'whole_files'),
        outside=(
            *('numpy', 'torch', 'onnx', 'onnxscript', 'onnxruntime'),
            'openvino',
        ),
    ),
    'graphs': Room(within=('graphs', 'ops', 'arguments'), outside=('torch',)),
    'hooks': Room(
        within=('graphs', 'hooks', 'arguments', 'whole_files'),
        outside=('numpy', 'torch', 'mmengine'),
    ),
    'optim': Room(
        within=('optim', 'graphs', 'arguments'),
        outside=('torch', 'mmengine'),
    ),
    'demo_app': Room(
        within=('apis', 'cli'), outside=('numpy', 'mmengine', 'gradio')
    ),
    'deploy': Room(
        within=('layers', 'fast', 'backbones', 'arguments'),
        outside=('torch',),
    ),
    'arguments': Room(within=(), outside=('torch',)),
    'detection': Room(
        within=('detection', 'ops'), outside=('torch', 'mmengine', 'mmdet')
    ),
    'checkpoint': Room(within=(), outside=('torch',)),
    'data_preprocessor': Room(
        within=('arguments', 'compat'),
        outside=('numpy', 'torch', 'mmengine', 'mmpretrain'),
    ),
    'analysis': Room(
        within=(
            *('analysis', 'apis', 'arguments', 'backbones'),
            *('config_files', 'ops'),
        ),
        outside=('numpy', 'torch', 'mmengine'),
    ),
    # The hosts and what draws are imported when they are asked for.
    'apis': Room(
        within=(
            *('apis', 'arguments', 'backbones', 'checkpoint', 'hub'),
            *('config_files', 'weight_files', 'whole_files'),
        ),
        outside=(
            *('numpy', 'torch', 'mmengine', 'mmcv', 'cv2', 'PIL', 'rich'),
            *('mmdet', 'mmseg', 'mmpretrain', 'pycocotools'),
            *('safetensors', 'matplotlib', 'scipy'),
        ),
    ),
    'benchmark': Room(
        within=(
            *('benchmark', 'backbones', 'compat', 'deploy', 'graphs'),
            'config_files',
            *('csv_files', 'ops', 'ops/scan', 'file_locks'),
        ),
        outside=(
            *('torch', 'mmengine', 'mmcv', 'cv2', 'rich', 'timm'),
            *('mmdet', 'mmpretrain'),
        ),
    ),
    'cli': Room(
        within=(
            *('cli', 'backbones', 'compat', 'hub', 'resuming'),
            *('config_files', 'data_preprocessor', 'file_locks'),
            *('own_files', 'weight_files', 'whole_files'),
        ),
        outside=('torch', 'mmengine', 'cv2'),
    ),
    'config_files': Room(within=('own_files',), outside=('mmengine',)),
    'csv_files': Room(within=('whole_files',), outside=()),
    'file_locks': Room(within=(), outside=()),
    'log': Room(within=(), outside=('mmengine',)),
    'own_files': Room(within=(), outside=()),
    'resuming': Room(within=('weight_files',), outside=('torch',)),
    'weight_files': Room(within=(), outside=('torch', 'safetensors')),
    'whole_files': Room(within=(), outside=()),
    'run': Room(within=(), outside=()),
    'version': Room(within=(), outside=()),
    '__init__': Room(
        within=(
            'analysis',
            'backbones',
            'compat',
            'data',
            'data_preprocessor',
            'detection',
            'hooks',
            'hub',
            'log',
            'optim',
            'version',
        ),
        outside=(),
    ),
}
