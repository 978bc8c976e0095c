"""Runs every Triton kernel forward and backward, for compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck \
        --report-api-errors no --error-exitcode 9 \
        python -m tests.ops.triton.sanitize_triton

and the same with ``--tool racecheck`` and ``--tool initcheck``. It ends with
an error if a kernel did not run. On a CPU Triton's interpreter runs them.
"""

import importlib
import itertools
import os
import pkgutil
import sys
from contextlib import ExitStack
from unittest.mock import patch

import torch

if not torch.cuda.is_available():
    # Read when Triton is imported.
    os.environ['TRITON_INTERPRET'] = '1'

from evmamba_mm.ops import triton as kernels

from ...fast.changes import BLOCKS, MODES, built, by_block, input_of, seen
from .cases import normal

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
MODULES = [
    importlib.import_module(f'{kernels.__name__}.{module.name}')
    for module in pkgutil.iter_modules(kernels.__path__)
]


def name_of(kernel) -> str:
    return f'{kernel.fn.__module__.rpartition(".")[2]}.{kernel.fn.__name__}'


def launched_kernels() -> set[str]:
    """Names of the functions that a launch starts; others are parts."""
    return {
        name_of(value)
        for module in MODULES
        for name, value in vars(module).items()
        if name.endswith('_kernel') and hasattr(value, 'fn')
    }


def run_blocks() -> None:
    """Every block by kernels, in each mode, in fp32 and in half precision."""
    halves = (torch.bfloat16, torch.float16) if DEVICE == 'cuda' else ()
    for kind, (training, with_grad), dtype in itertools.product(
        BLOCKS, MODES if halves else MODES[::3], (None, *halves)
    ):
        block, x = built(kind).train(training), input_of(kind)
        found = seen(block, x, by_block(True), with_grad, dtype)
        if isinstance(found, type):
            raise RuntimeError(f'{kind}: {found.__name__}')
        print(kind, training, with_grad, dtype, flush=True)


def run_projection() -> None:
    """What the CUDA scan calls, which the blocks reach on a GPU alone."""
    from evmamba_mm.ops.triton.group_linear import (
        project_backward,
        project_forward,
    )

    u = normal(2, 5, 7, 33, device=DEVICE)
    weight = normal(4, 11, 33, device=DEVICE)
    proj = project_forward(u, weight, 3, 2)
    project_backward(torch.ones_like(proj), u, weight, 3, 2, None)


def run_augmentations() -> None:
    """Every operation of RandAugment, in both layouts, and erasing."""
    from evmamba_mm.ops.triton import augment, erase

    kinds = torch.tensor(list(augment.KINDS.values()))
    operations = torch.zeros(1, len(kinds), augment.NUMBERS)
    operations[..., 0] = kinds
    operations[..., augment.FACTOR] = 0.4
    operations[..., augment.MATRIX] = torch.tensor([0.9, 0.3, -4, 0.2, 1, 3])
    shape = (len(kinds), 3, 13, 21)
    images = torch.arange(kinds.numel() * 3 * 13 * 21).view(shape)
    images = images.to(DEVICE, torch.uint8)
    boxes = torch.tensor([[0, 0, 0, 13, 21, 1], [9, 3, 4, 3, 4, 2]])
    boxes = boxes.to(DEVICE, torch.int32)
    for layout in (torch.contiguous_format, torch.channels_last):
        images = images.contiguous(memory_format=layout)
        augment.augment(images, operations.to(DEVICE))
        for colours in (None, ((1.0,) * 3, (2.0,) * 3)):
            erase.erase(images, boxes, colours)


def main() -> int:
    ran = set()
    launch = kernels.common.launch

    def recorded(kernel, *arguments, **options):
        ran.add(name_of(kernel))
        launch(kernel, *arguments, **options)

    with ExitStack() as patches:
        for module in MODULES:
            if hasattr(module, 'launch'):
                patches.enter_context(patch.object(module, 'launch', recorded))
        run_blocks()
        run_projection()
        run_augmentations()
    if DEVICE == 'cuda':
        torch.cuda.synchronize()
    missing = launched_kernels() - ran
    print(
        f'{len(ran)} kernels ran; without a run: {sorted(missing) or "none"}'
    )
    return int(bool(missing))


if __name__ == '__main__':
    sys.exit(main())
