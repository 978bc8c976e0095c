"""The selective scan in vectorised torch, for any device.

Shape letters: B batch, K groups, D inner channels of a group, N states,
L length, S steps of a segment.

The sequence is cut into segments. Within a segment, decay and input of every
step are computed at once and only ``h = a * h + b`` runs step by step. The
forward keeps one state per segment and the backward recomputes the others, so
memory does not grow with L * N. States have the layout (..., N, D): channels
are the long axis, so a broadcast over the states copies whole vectors.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tracing import refuse_forward_mode

# Elements of one (S, B, K, N, D) buffer: on a CPU the half dozen buffers of a
# segment should stay in the second-level cache, on a GPU launches cost most.
_SEGMENT_ELEMENTS = {'cpu': 2**17, 'other': 2**25}
# A step that touches fewer elements than this costs more to start than to
# run, so a segment is then split into lanes that advance together.
_LANE_ELEMENTS = {'cpu': 2**10, 'other': 2**21}


def _target(table: dict[str, int], device: torch.device) -> int:
    return table['cpu' if device.type == 'cpu' else 'other']


def _segment_steps(u: Tensor, states: int) -> int:
    # A comparison of symbolic sizes would fix them for torch.export.
    per_step = torch.sym_max(1, u.shape[0] * u.shape[1] * states)
    return torch.sym_max(16, _target(_SEGMENT_ELEMENTS, u.device) // per_step)


def _recur(decays: Sequence[Tensor], states: Sequence[Tensor]) -> None:
    """Add to each state the one before it times its decay, in place.

    Views of the steps are passed because taking them one by one in the loop
    costs as much as the arithmetic.

    Args:
        decays: Decay of each step but the first, (...) each.
        states: Input of each step, (...) each; overwritten.
    """
    for decay, before, state in zip(decays, states, states[1:], strict=False):
        state.addcmul_(decay, before)


def _lanes(b: Tensor) -> int:
    per_step = max(1, b[0].numel())
    wanted = _target(_LANE_ELEMENTS, b.device) // per_step
    return min(wanted, math.isqrt(b.shape[0]))


def _linear_scan(a: Tensor, b: Tensor, start: Tensor, stable: bool) -> Tensor:
    """States of ``h[t] = a[t] * h[t - 1] + b[t]`` from ``h[-1] = start``.

    Args:
        a: Decay of each step, (S, ...); left as it is.
        b: Input of each step, (S, ...); overwritten.
        start: State before the first step, (...).
        stable: Whether no decay is above 1. The product over a lane of those
            that are can overflow where no state does.

    Returns:
        (S, ...), sharing memory with ``b`` where it can.
    """
    steps, lanes = b.shape[0], _lanes(b) if stable else 1
    if lanes < 2:
        b[0] += a[0] * start
        _recur(a.unbind(0)[1:], b.unbind(0))
        return b
    span = -(-steps // lanes)
    pad = span * lanes - steps
    if pad:
        a = torch.cat([a, a.new_ones(pad, *a.shape[1:])])
        b = torch.cat([b, b.new_zeros(pad, *b.shape[1:])])
    a = a.unflatten(0, (lanes, span)).transpose(0, 1)
    local = b.unflatten(0, (lanes, span)).transpose(0, 1).contiguous()
    _recur(a.unbind(0)[1:], local.unbind(0))
    decay = a.cumprod(0)
    entry = torch.empty_like(local[0])
    state = start
    for lane in range(lanes):
        entry[lane] = state
        state = torch.addcmul(local[-1, lane], decay[-1, lane], state)
    h = local.addcmul_(decay, entry)
    return h.transpose(0, 1).flatten(0, 1)[:steps]


def _linear_scan_back(a: Tensor, b: Tensor, stable: bool) -> Tensor:
    """``g[t] = a[t + 1] * g[t + 1] + b[t]`` from the last step to the first.

    Args:
        a: Decay of each step, (S, ...); left as it is.
        b: What each step adds, (S, ...); overwritten.
        stable: As of :func:`_linear_scan`.
    """
    if not stable or _lanes(b) < 2:
        _recur(a.unbind(0)[:0:-1], b.unbind(0)[::-1])
        return b
    later = torch.cat([a[1:], torch.ones_like(a[:1])]).flip(0)
    zeros = torch.zeros_like(b[0])
    return _linear_scan(later, b.flip(0), zeros, stable).flip(0)


def _time_first(x: Tensor, groups: int) -> Tensor:
    """(B, K*D, L) to (L, B, K, D) as a contiguous tensor."""
    return x.permute(2, 0, 1).unflatten(2, (groups, -1)).contiguous()


def _is_captured(x: Tensor) -> bool:
    """Whether a CUDA graph is recorded, in which no value can be asked for."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


class _Segments:
    """The arguments of one scan, time first, served segment by segment."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> None:
        self.groups, self.states = B.shape[1], B.shape[2]
        self.steps = _segment_steps(u, self.states)
        self.length = u.shape[2]
        raw = delta if delta_bias is None else delta + delta_bias[:, None]
        self.raw = _time_first(raw, self.groups)
        self.delta = F.softplus(self.raw) if delta_softplus else self.raw
        self.u = _time_first(u, self.groups)
        self.A = A.unflatten(0, (self.groups, -1)).mT.contiguous()
        self.B = B.permute(3, 0, 1, 2).contiguous()
        self.C = C.permute(3, 0, 1, 2).contiguous()
        self.stable = _is_captured(u) or bool(
            (A <= 0).all() and (delta_softplus or (self.delta >= 0).all())
        )

    def zero_state(self) -> Tensor:
        batch, groups, channels = self.u.shape[1:]
        return self.u.new_zeros(batch, groups, self.states, channels)

    def spans(self) -> list[slice]:
        return [
            slice(s, min(s + self.steps, self.length))
            for s in range(0, self.length, self.steps)
        ]

    def states_of(self, span: slice, start: Tensor) -> tuple[Tensor, Tensor]:
        """Decays and states of a segment, both (S, B, K, N, D)."""
        delta = self.delta[span]
        decay = torch.mul(delta[..., None, :], self.A).exp_()
        h = (delta * self.u[span])[..., None, :] * self.B[span][..., None]
        return decay, _linear_scan(decay, h, start, self.stable)


@torch.library.custom_op('evmamba_mm::selective_scan', mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Output (B, K*D, L) and the states before the segments, flattened."""
    with torch.autocast(u.device.type, enabled=False):
        seg = _Segments(u, delta, A, B, C, delta_bias, delta_softplus)
        y = torch.empty_like(seg.u)
        state = seg.zero_state()
        entries = []
        for span in seg.spans():
            entries.append(state)
            _, h = seg.states_of(span, state)
            y[span] = torch.matmul(seg.C[span][..., None, :], h).squeeze(-2)
            state = h[-1].clone()
        y = y.flatten(2).permute(1, 2, 0)
        y = y.clone(memory_format=torch.contiguous_format)
        if D is not None:
            y.addcmul_(D[:, None], u)
        if not entries:
            return y, state.new_empty(0)
        return y, torch.stack(entries).flatten()


@_scan.register_fake
def _scan_fake(u, delta, A, B, C, D, delta_bias, delta_softplus):
    states = B.shape[2]
    # In one dimension, since torch.export may not ask of a symbolic number of
    # segments whether it is 1.
    segments = -(-u.shape[2] // _segment_steps(u, states))
    entries = u.new_empty(segments * u.shape[0] * u.shape[1] * states)
    return torch.empty_like(u, memory_format=torch.contiguous_format), entries


def _segment_gradients(
    seg: _Segments, span: slice, entry: Tensor, dy: Tensor, carry: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of one segment.

    ``carry`` is the gradient of the state that the segment hands on, and the
    last item returned is that of the state it was handed.
    """
    u, delta, b, c = seg.u[span], seg.delta[span], seg.B[span], seg.C[span]
    decay, h = seg.states_of(span, entry)
    dC = torch.matmul(h, dy[..., None]).squeeze(-1)
    dh = dy[..., None, :] * c[..., None]
    dh[-1] += carry
    dh = _linear_scan_back(decay, dh, seg.stable)
    carry = decay[0] * dh[0]
    dh_b = torch.matmul(b[..., None, :], dh).squeeze(-2)
    du = dh_b * delta
    dB = torch.matmul(dh, (delta * u)[..., None]).squeeze(-1)
    ddecay = decay.mul_(dh)
    ddecay[1:] *= h[:-1]
    ddecay[0] *= entry
    ddelta = (ddecay * seg.A).sum(-2).addcmul_(dh_b, u)
    dA = ddecay.mul_(delta[..., None, :]).sum((0, 1))
    return du, ddelta, dA, dB, dC, carry


@torch.library.custom_op(
    'evmamba_mm::selective_scan_backward', mutates_args=()
)
def _scan_backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    entries: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B and C."""
    with torch.autocast(u.device.type, enabled=False):
        seg = _Segments(u, delta, A, B, C, delta_bias, delta_softplus)
        dy_t = _time_first(dy, seg.groups)
        du, ddelta = torch.empty_like(seg.u), torch.empty_like(seg.u)
        dB, dC = torch.empty_like(seg.B), torch.empty_like(seg.C)
        dA = torch.zeros_like(seg.A)
        carry, spans = seg.zero_state(), seg.spans()
        entries = entries.view(len(spans), *carry.shape)
        for span, entry in zip(spans[::-1], entries.flip(0), strict=True):
            (
                du[span],
                ddelta[span],
                dA_segment,
                dB[span],
                dC[span],
                carry,
            ) = _segment_gradients(seg, span, entry, dy_t[span], carry)
            dA += dA_segment
        if delta_softplus:
            ddelta *= torch.sigmoid(seg.raw)

        def back(x: Tensor) -> Tensor:
            x = x.flatten(2).permute(1, 2, 0)
            return x.clone(memory_format=torch.contiguous_format)

        du = back(du)
        if D is not None:
            du.addcmul_(D[:, None], dy)
        return (
            du,
            back(ddelta),
            dA.mT.flatten(0, 1).contiguous(),
            dB.permute(1, 2, 3, 0).contiguous(),
            dC.permute(1, 2, 3, 0).contiguous(),
        )


@_scan_backward.register_fake
def _scan_backward_fake(
    dy, u, delta, A, B, C, D, delta_bias, delta_softplus, entries
):
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (u, delta, A, B, C)
    )


def _setup_context(ctx, inputs, output) -> None:
    *tensors, delta_softplus = inputs
    ctx.delta_softplus = delta_softplus
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    # Otherwise zeros would be written for the gradient of the states.
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, _):
    if dy is None:
        return (None,) * 8
    refuse_forward_mode('evmamba_mm::selective_scan')
    u, delta, A, B, C, D, delta_bias, entries = ctx.saved_tensors
    du, ddelta, dA, dB, dC = _scan_backward(
        dy, u, delta, A, B, C, D, delta_bias, ctx.delta_softplus, entries
    )
    dD = None if D is None else (dy * u).sum((0, 2))
    dbias = None if delta_bias is None else ddelta.sum((0, 2))
    return du, ddelta, dA, dB, dC, dD, dbias, None


def _no_second_derivative(ctx, *gradients):
    raise RuntimeError(
        'the torch scan has no second derivative; for create_graph=True use '
        "scan_backend='naive'"
    )


_scan.register_autograd(_backward, setup_context=_setup_context)
_scan_backward.register_autograd(_no_second_derivative)


def scan_torch(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Selective scan in vectorised torch with a recomputing backward.

    Takes checked arguments in one floating dtype and computes in it.
    """
    return _scan(u, delta, A, B, C, D, delta_bias, delta_softplus)[0]
