"""Linear map of an image's patches and the layer norm of the result.

Shape letters: B batch, I channels of the image, H W image, P side of a patch,
C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .choice import autocast_dtype, choose_fused
from .norm import check_norm, layer_norm, norm_backward
from .shortcut import lazy_kernels, watched
from .sums import column_sums

# A wider result would not fit into the registers of a program.
MAX_KERNEL_CHANNELS = 256


_kernels = lazy_kernels('patch_norm_triton')


def _patches(image: Tensor, side: int) -> Tensor:
    rows, columns = image.shape[2] // side, image.shape[3] // side
    cells = image[:, :, : rows * side, : columns * side]
    cells = cells.unflatten(3, (columns, side)).unflatten(2, (rows, side))
    return cells.permute(0, 2, 4, 1, 3, 5)


def _embed(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    side = weight.shape[2]
    if not image.is_cuda:
        return F.conv2d(image, weight, bias, side).permute(0, 2, 3, 1)
    # As one matrix product: cuDNN's convolution of three channels is slower
    # and leaves the result channels first.
    patches = _patches(image, side).to(autocast_dtype(image))
    return F.linear(patches.flatten(3), weight.flatten(1), bias)


def _forward(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    return _kernels().patch_forward(
        image, weight, bias, norm_weight, norm_bias, eps, dtype
    )


class _PatchNorm(torch.autograd.Function):
    """Patches and their linear map are computed again in the backward.

    Each is as large as the first stage's map; the image is there anyway.
    """

    @staticmethod
    def forward(ctx, image, weight, bias, norm_weight, norm_bias, eps, dtype):
        parameters = (weight, bias, norm_weight, norm_bias)
        ctx.save_for_backward(image, *parameters)
        ctx.eps, ctx.dtype = eps, dtype
        return _forward(image, *parameters, eps, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        image, weight, bias, norm_weight, norm_bias = ctx.saved_tensors
        patches = _patches(image, weight.shape[2]).to(ctx.dtype)
        patches = patches.flatten(3).flatten(0, 2)
        with torch.autocast(image.device.type, enabled=False):
            rows = weight.flatten(1).to(ctx.dtype)
            x = F.linear(patches, rows, bias.to(ctx.dtype))
            dx, _, (dscale, dshift) = norm_backward(
                dout.flatten(0, 2), x, None, norm_weight, norm_bias, ctx.eps
            )
            dweight = (dx.T @ patches).view_as(weight)
        return (
            None,
            dweight.to(weight.dtype),
            column_sums(dx).to(bias.dtype),
            dscale.to(norm_weight.dtype),
            dshift.to(norm_bias.dtype),
            None,
            None,
        )


def _check(image: Tensor, weight: Tensor, bias: Tensor) -> None:
    channels, *window = weight.shape
    fits = image.dim() == 4 and weight.dim() == 4 and window[1] == window[2]
    if (
        not fits
        or window[0] != image.shape[1]
        or min(image.shape[2:]) < window[1]
        or bias.shape != (channels,)
    ):
        raise ValueError(
            'image, weight and bias must have shapes (B, I, H, W), (C, I, P, '
            f'P) and (C,), H and W at least P; got {tuple(image.shape)}, '
            f'{tuple(weight.shape)} and {tuple(bias.shape)}'
        )


def patch_layer_norm(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float = 1e-5,
    backend: str = 'auto',
) -> Tensor:
    """Convolve an image by its patches and normalise the channels.

    What is left over on the right and at the bottom is not read. On a GPU one
    kernel does all of it, unless the image has a gradient.

    Args:
        image: (B, I, H, W), H and W at least P.
        weight: As of ``nn.Conv2d`` with a stride of its side, (C, I, P, P).
        bias: (C,).
        norm_weight: Scale of each channel, (C,).
        norm_bias: Shift of each channel, (C,).
        eps: Added to the variance.
        backend: See :func:`.norm.layer_norm`.

    Returns:
        Map (B, H // P, W // P, C), in the autocast dtype if autocast is on,
        else in that of the image.

    Raises:
        ValueError: If a shape does not fit, or the backend is unknown or
            cannot serve the image.
        ImportError: If the chosen backend is not installed.

    Source: Swin Transformer (arXiv:2103.14030), with its layer norm
    (arXiv:1607.06450).
    """
    _check(image, weight, bias)
    kernels = choose_fused(image, backend) == 'triton' and not watched()
    grads = torch.is_grad_enabled()
    if (
        not kernels
        or len(bias) > MAX_KERNEL_CHANNELS
        or (grads and image.requires_grad)
    ):
        x = _embed(image, weight, bias)
        return layer_norm(x, norm_weight, norm_bias, eps, backend)
    if norm_weight.shape != bias.shape or norm_bias.shape != bias.shape:
        check_norm(bias.expand(1, -1), norm_weight, norm_bias)
    run = _PatchNorm.apply if grads else _forward
    dtype = autocast_dtype(image)
    return run(image, weight, bias, norm_weight, norm_bias, eps, dtype)
