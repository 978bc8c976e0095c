import torch
from torch import Tensor

COLLECT = 0


def _cells(psa_type: int, sizes: tuple[int, ...], device: torch.device):
    """Where each number of the input goes: an index of it and of the output.

    Tap (i, j) of a mask at (y, x) means the cell (y + i - half, x + j - half).
    """
    h_feature, w_feature, h_mask, w_mask, half_h, half_w = sizes
    i, j, y, x = torch.meshgrid(
        *(
            torch.arange(n, device=device)
            for n in (h_mask, w_mask, h_feature, w_feature)
        ),
        indexing='ij',
    )
    row, col = y + i - half_h, x + j - half_w
    inside = (row >= 0) & (row < h_feature) & (col >= 0) & (col < w_feature)
    tap, y, x, row, col = (n[inside] for n in (i * w_mask + j, y, x, row, col))
    there, here = row * w_feature + col, y * w_feature + x
    first, second = (there, here) if psa_type == COLLECT else (here, there)
    cell = first * (h_feature * w_feature) + second
    return tap * (h_feature * w_feature) + here, cell


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Spreads masks (B, h*w, H, W) over `output` (B, H*W, H, W)."""
    sizes = h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask
    source, target = _cells(psa_type, sizes, input.device)
    output.view(num_, -1)[:, target] = input.reshape(num_, -1)[:, source]


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Fills `grad_input`; see `psamask_forward`."""
    sizes = h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask
    source, target = _cells(psa_type, sizes, grad_output.device)
    grad = grad_output.reshape(num_, -1)[:, target]
    grad_input.view(num_, -1)[:, source] = grad
