"""The selective scan in ops that every exporter knows, in two forms.

Both take sequences with channels innermost, so that laying them out moves
whole vectors, and step sizes after bias and softplus.

Shape letters: G sequences, B batch, L length, D inner channels, N states,
T chunks, U steps of a chunk, S lanes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# With fewer steps an iteration costs more to start than to run, with more a
# chunk leaves a core's second-level cache.
CHUNK_STEPS = 8


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))`` by ops that runtimes have as vector code.

    onnxruntime computes its own Softplus one element at a time.

    Source: W. Kahan's form of ``log(1 + y)``, exact to rounding for small y.
    """
    y = (-x.abs()).exp()
    rounded = 1 + y
    quotient = rounded.log() * y / (rounded - 1)
    return torch.where(rounded == 1, y, quotient) + x.relu()


def _advance(
    h: Tensor, delta: Tensor, du: Tensor, B: Tensor, C: Tensor, A: Tensor
) -> tuple[Tensor, Tensor]:
    """Advance the states by one chunk; returns them and the output.

    ``h`` is (G, B, 1, N, D), ``delta`` and ``du`` (G, B, U, 1, D), ``B``
    (G, B, U, N, 1), ``C`` (G, B, U, 1, N) and ``A`` (G, 1, 1, N, D).
    """
    decays = (delta * A).exp().split(1, 2)
    inputs = (B * du).split(1, 2)
    states = []
    for decay, added in zip(decays, inputs, strict=True):
        h = decay * h + added
        states.append(h)
    # A loop may not hand out one tensor twice.
    return h.clone(), C @ torch.cat(states, 2)


def _padded(x: Tensor, length: int) -> Tensor:
    """(G, B, L, C) to (G, B, length, C); a zero step size changes nothing."""
    return F.pad(x, (0, 0, 0, length - x.shape[2]))


def scan_in_chunks(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> Tensor:
    """Scan by a loop over chunks; sizes may be symbolic.

    The loop is torch's ``scan``, which becomes ONNX's Scan.

    Args:
        u: Input, (G, B, L, D).
        delta: Step sizes, (G, B, L, D).
        A: Decay rates, (G, N, D).
        B: Input projections, (G, B, L, N).
        C: Output projections, (G, B, L, N).

    Returns:
        (G, B, L, D), without the weighted input.
    """
    groups, batch, length, channels = u.shape
    chunks = (length + CHUNK_STEPS - 1) // CHUNK_STEPS

    def in_chunks(x: Tensor) -> Tensor:
        x = _padded(x, chunks * CHUNK_STEPS)
        x = x.reshape(groups, batch, chunks, CHUNK_STEPS, x.shape[3])
        return x.permute(2, 0, 1, 3, 4).contiguous()

    start = u.new_zeros(groups, batch, 1, A.shape[1], channels)
    steps = [
        in_chunks(delta).unsqueeze(-2),
        in_chunks(delta * u).unsqueeze(-2),
        in_chunks(B).unsqueeze(-1),
        in_chunks(C).unsqueeze(-2),
    ]
    rates = A[:, None, None].contiguous()
    _, y = torch.ops.higher_order.scan(_advance, [start], steps, (rates,))
    y = y.permute(1, 2, 0, 3, 4, 5)
    y = y.reshape(groups, batch, chunks * CHUNK_STEPS, channels)
    return y.narrow(2, 0, length)


def scan_written_out(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> Tensor:
    """Scan of a fixed length without a loop; args as :func:`scan_in_chunks`.

    About ``sqrt(L)`` lanes advance together from zero states. Each then adds
    what the state before it has decayed to.
    """
    groups, batch, length, channels = u.shape
    lanes = max(1, math.isqrt(length))
    steps = (length + lanes - 1) // lanes

    def in_lanes(x: Tensor) -> Tensor:
        x = _padded(x, lanes * steps)
        return x.reshape(groups, batch, lanes, steps, x.shape[3])

    delta, du = in_lanes(delta), in_lanes(delta * u)
    decays = (delta.unsqueeze(-2) * A[:, None, None, None]).exp().split(1, 3)
    inputs = in_lanes(B).unsqueeze(-1) * du.unsqueeze(-2)
    inputs = inputs.split(1, 3)
    states, products = [inputs[0]], [decays[0]]
    for decay, added in zip(decays[1:], inputs[1:], strict=True):
        states.append(decay * states[-1] + added)
        products.append(decay * products[-1])
    ends = zip(states[-1].split(1, 2), products[-1].split(1, 2), strict=True)
    entries = [torch.zeros_like(states[0][:, :, :1])]
    for end, product in ends:
        entries.append(end + product * entries[-1])
    entry = torch.cat(entries[:-1], 2)
    h = torch.cat(states, 3) + torch.cat(products, 3) * entry
    y = in_lanes(C).unsqueeze(-2) @ h
    y = y.reshape(groups, batch, lanes * steps, channels)
    return y.narrow(2, 0, length)
