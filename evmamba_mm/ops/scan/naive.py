"""The selective scan as its equations read: the reference of the others.

It is pure torch, so every transform and mode of differentiation is right.

Shape letters: B batch, K groups, D inner channels of a group, N states,
L length. Source: Mamba (arXiv:2312.00752), equations 1a, 1b and 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def scan_naive(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Selective scan by a loop over time, never optimised.

    Takes checked arguments in one floating dtype and computes in it.
    """
    batch, channels, length = u.shape
    groups, states = B.shape[1], B.shape[2]
    split = (batch, groups, channels // groups, length)
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    u_groups = u.reshape(split)
    delta = delta.reshape(split)
    A = A.reshape(groups, channels // groups, states)
    h = u.new_zeros(batch, groups, A.shape[1], states)
    outputs = []
    for t in range(length):
        delta_t = delta[..., t, None]
        b_t = B[:, :, None, :, t]
        c_t = C[:, :, None, :, t]
        h = torch.exp(delta_t * A) * h + delta_t * b_t * u_groups[..., t, None]
        outputs.append((h * c_t).sum(-1))
    y = torch.stack(outputs, dim=-1) if outputs else u_groups
    y = y.reshape(u.shape)
    return y if D is None else y + D[:, None] * u
