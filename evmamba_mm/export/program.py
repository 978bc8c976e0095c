"""A model as a program of torch.export with named sizes."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from ..layers.bi_mamba import BiMamba
from ..layers.scan_mixer import ScanMixer

# Place of each named size in an image (B, C, H, W), and its range. torch
# cannot prove for smaller images that no feature map is empty.
SIZES = {
    'batch': (0, 1, 4096),
    'height': (2, 64, 8192),
    'width': (3, 64, 8192),
}


class _Portable(nn.Module):
    """The copy of a model, with the image as the only argument."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor | Sequence[Tensor]:
        return self.model(image)


def _portable_copy(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model).cpu().float().eval()
    for module in model.modules():
        if isinstance(module, ScanMixer | BiMamba):
            # Its ops are the whole scan in one node; tracing them needs no
            # numba.
            module.backend = 'numba'
    return _Portable(model)


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
    return export(
        _portable_copy(model),
        (image.cpu().float(),),
        dynamic_shapes={'image': shapes},
        # torch cannot prove that no map is empty.
        prefer_deferred_runtime_asserts_over_guards=bool(shapes),
    )
