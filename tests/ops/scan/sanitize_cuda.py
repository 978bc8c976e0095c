"""Runs the scan kernels on small maps of many kinds, for compute-sanitizer.

    compute-sanitizer --tool memcheck --report-api-errors no \
        --error-exitcode 9 python -m tests.ops.scan.sanitize_cuda

and the same with ``--tool racecheck``. The errors of API calls that are left
out are questions of the driver's version that cuda-bindings asks. SS2D is
given its projection: racecheck finds fault with the kernel of cuBLAS that
would make it.
"""

from typing import NamedTuple

import torch

from evmamba_mm.ops import es2d_scan
from evmamba_mm.ops.scan.cuda import proj_columns


class Case(NamedTuple):
    """A map, the sizes of its scan, and where it goes."""

    shape: tuple[int, int, int, int]
    states: int
    rank: int
    step: int
    dtype: torch.dtype
    cross: bool = False


HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
CASES = [
    Case((1, 1, 1, 8), 16, 1, 2, SINGLE),
    Case((2, 13, 5, 96), 16, 3, 2, BRAIN),
    Case((1, 1, 7, 33), 5, 2, 3, HALF),
    Case((1, 55, 37, 200), 16, 6, 2, BRAIN),
    Case((2, 9, 9, 48), 1, 3, 1, SINGLE),
    Case((1, 6, 6, 40), 64, 3, 4, BRAIN),
    # Long enough to be cut into chunks.
    Case((1, 64, 64, 32), 16, 2, 1, BRAIN),
    Case((1, 11, 8, 96), 16, 6, 1, SINGLE, cross=True),
    Case((1, 40, 40, 24), 7, 2, 1, HALF, cross=True),
]


def normal(*shape):
    return torch.randn(*shape, device='cuda')


def run(case):
    channels = case.shape[3]
    sets = 4 if case.cross else min(4, case.step**2)
    x = normal(*case.shape).to(case.dtype).requires_grad_()
    parameters = [
        normal(sets, case.rank + 2 * case.states, channels) * 0.1,
        normal(sets, channels, case.rank) * 0.1,
        # Small steps: half precision overflows on long sequences otherwise.
        normal(sets, channels) - 4,
        normal(sets * channels, case.states).abs().log(),
        normal(sets * channels),
    ]
    for parameter in parameters:
        parameter.requires_grad_()
    if case.cross:
        width = 4 * proj_columns(case.states, case.rank)
        proj = normal(*case.shape[:3], width).to(case.dtype)
        op = torch.ops.evmamba_mm.ss2d_scan_cuda
        y, _ = op(x, proj, *parameters[1:], True)
    else:
        y = es2d_scan(x, *parameters, step_size=case.step, backend='cuda')
    y.backward(torch.randn_like(y))
    torch.cuda.synchronize()
    leaves = (y, x.grad, *(p.grad for p in parameters[case.cross :]))
    if not all(torch.isfinite(leaf).all() for leaf in leaves):
        raise RuntimeError(f'{case} gave numbers that are not finite')
    print(case, flush=True)


if __name__ == '__main__':
    torch.manual_seed(0)
    for case in CASES:
        run(case)
