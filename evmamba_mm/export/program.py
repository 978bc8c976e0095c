"""A model as a program of torch.export with named sizes."""

import copy
import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from ..backbones import EfficientVMamba
from ..layers.bi_mamba import BiMamba
from ..layers.scan_mixer import ScanMixer

# Place of each named size in an image (B, C, H, W), and its range. torch
# cannot prove for smaller images that no feature map is empty.
SIZES = {
    'batch': (0, 1, 4096),
    'height': (2, 64, 8192),
    'width': (3, 64, 8192),
}
# torch.export patches modules for all threads while it traces.
TRACING = threading.RLock()


class _Portable(nn.Module):
    """A model with the image as the only argument."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor | Sequence[Tensor]:
        return self.model(image)


def portable_copy(model: nn.Module, backend: str) -> nn.Module:
    """A copy on the CPU, in fp32 and evaluation mode, without GPU kernels.

    Args:
        model: Any module; it is not changed.
        backend: Of each scan, whatever the model asked for.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    for module in model.modules():
        if isinstance(module, ScanMixer | BiMamba):
            module.backend = backend
        if isinstance(module, EfficientVMamba):
            module.fused = False
    return model


def example(image: Tensor | None) -> Tensor:
    """The image, fp32 and on the CPU; noise of 1x3x224x224 when None."""
    if image is None:
        return torch.randn(1, 3, 224, 224)
    return image.detach().cpu().float()


def check_dynamic(dynamic: Sequence[str]) -> tuple[str, ...]:
    """Refuse a name that is not of :data:`SIZES`.

    Raises:
        ValueError: It lists the legal names.
    """
    unknown = set(dynamic) - set(SIZES)
    if isinstance(dynamic, str) or unknown:
        raise ValueError(
            f'dynamic must be a list of {", ".join(SIZES)}, got {dynamic!r}'
        )
    return tuple(dynamic)


@torch.no_grad()
def export_program(
    model: nn.Module,
    image: Tensor,
    dynamic: Sequence[str] = tuple(SIZES),
) -> ExportedProgram:
    """Export an fp32 copy of a model for inference on images.

    The program holds each scan as one op of this package, which runs where
    numba is installed; :func:`decompose_scans` writes it in torch's ops.

    Args:
        model: Takes an image; see :func:`dense_model`. It is not changed.
        image: Example, (B, C, H, W), from 64x64 where a side is dynamic.
        dynamic: Sizes that stay open, of 'batch', 'height' and 'width'; the
            others are fixed to the example's.

    Raises:
        ValueError: If the example or a name is not legal.
    """
    dynamic = check_dynamic(dynamic)
    if image.dim() != 4:
        raise ValueError(
            f'image must have shape (B, C, H, W), got {tuple(image.shape)}'
        )
    shapes = {}
    for name in dynamic:
        place, least, most = SIZES[name]
        if not least <= image.shape[place] <= most:
            raise ValueError(
                f'image must have a {name} of {least} to {most} for it to be '
                f'dynamic, got {image.shape[place]}'
            )
        shapes[place] = Dim(name, min=least, max=most)
    if 'batch' in dynamic and len(image) == 1:
        # torch.export would fix a batch of 1.
        image = image.expand(2, -1, -1, -1).contiguous()
    with TRACING:
        return export(
            # numba's ops are a scan in one node; tracing needs no numba.
            _Portable(portable_copy(model, 'numba')),
            (example(image),),
            dynamic_shapes={'image': shapes},
            # torch cannot prove that no map is empty.
            prefer_deferred_runtime_asserts_over_guards=bool(shapes),
        )
