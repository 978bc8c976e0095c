import torch
from torch import Tensor


def torchvision_ops():
    """The namespace of torchvision's compiled ops.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        import torchvision  # noqa: F401  registers the ops
    except ImportError as error:
        raise ImportError(
            'mmcv has no compiled ops here and torchvision, which serves '
            'this one, cannot be imported. Install the release that matches '
            f'torch {torch.__version__}: `pip install torchvision`'
        ) from error
    return torch.ops.torchvision


def full_precision(tensor: Tensor) -> Tensor:
    """`tensor` in fp32 when it is fp16 or bf16, else as it is.

    torchvision lacks kernels for both: on the CPU for most ops, and for bf16
    on the GPU too ("roi_align_backward_kernel not implemented for
    'BFloat16'"). Sums and box areas keep their digits as well.
    """
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor
