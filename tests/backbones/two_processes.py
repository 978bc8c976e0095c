"""Trains a small backbone in two processes, by the kernels.

    python -m tests.backbones.two_processes STORE

prints a line of JSON for each way to wrap it: whether every parameter has a
gradient, and whether it is the same in both.
"""

import json
import os
import sys

import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from evmamba_mm import EfficientVMamba

from .. import quick_triton

WAYS = {
    'plain': {},
    'unused': {'find_unused_parameters': True},
    'static': {'static_graph': True},
}


def gradients(model, rank):
    # The second step meets what the first has set up.
    for step in range(2):
        generator = torch.Generator().manual_seed(2 * step + rank)
        image = torch.randn(2, 3, 16, 16, generator=generator)
        with torch.autocast('cpu', torch.bfloat16):
            y = model(image)[-1]
        model.zero_grad()
        y.float().square().sum().backward()
    return [p.grad for p in model.parameters()]


def work(rank, store):
    distributed.init_process_group(
        'gloo', init_method=f'file://{store}', rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = EfficientVMamba(
        arch=dict(channels=(8, 16), depths=(1, 1)),
        block_types=('evss', 'inverted_residual'),
        d_state=2,
    )
    for name, options in WAYS.items():
        found = gradients(DistributedDataParallel(model, **options), rank)
        there = all(x is not None for x in found)
        mine = torch.cat([x.flatten() for x in found if x is not None])
        both = [torch.empty_like(mine) for _ in range(2)]
        distributed.all_gather(both, mine)
        if rank == 0:
            print(json.dumps([name, there, torch.equal(*both)]), flush=True)
    distributed.destroy_process_group()


if __name__ == '__main__':
    os.environ['EVMAMBA_FUSED'] = 'true'
    quick_triton.hurry()
    multiprocessing.start_processes(
        work, args=(sys.argv[1],), nprocs=2, start_method='fork'
    )
