"""Trains a small model in two processes, by both wrappers.

    python -m tests.optim.flat_processes STORE

prints a line of JSON for each training: the losses, and the weights at the
end, of the first process. Then the mean of large gradients, and an error.
"""

import json
import sys

import torch
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import distributed, multiprocessing, nn

from evmamba_mm import FlatDistributedDataParallel
from evmamba_mm.optim.flat_parallel import _Row

WRAPPERS = dict(
    usual=MMDistributedDataParallel, flat=FlatDistributedDataParallel
)
TRAININGS = dict(
    each=dict(), accumulated=dict(count=2), thawed=dict(thaw=True)
)


class Model(BaseModel):
    """Weights in two layouts and two dtypes, and one that may go unused."""

    def __init__(self, used=True):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1).to(
            memory_format=torch.channels_last
        )
        self.transposed = nn.Parameter(torch.randn(5, 4).t())
        self.wide = nn.Linear(5, 2).double()
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.extra = nn.Parameter(torch.ones(()))
        self.used = used

    def forward(self, images, mode='tensor'):
        x = self.convolution(images).mean((2, 3)) @ self.transposed
        y = (self.wide(x.double()) * self.frozen).square().mean()
        return dict(loss=y * self.extra if self.used else y)


def train(wrapper, rank, count=1, used=True, thaw=False, freeze=False):
    torch.manual_seed(0)
    inner = Model(used)
    if wrapper is MMDistributedDataParallel:
        inner.frozen.requires_grad_(thaw)
    model = wrapper(inner)
    inner.frozen.requires_grad_(thaw)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    optim = OptimWrapper(
        optimizer, clip_grad=dict(max_norm=0.5), accumulative_counts=count
    )
    losses = []
    generator = torch.Generator().manual_seed(rank)
    optim.initialize_count_status(model, 0, 6)
    for step in range(6):
        if freeze and step == 2:
            inner.frozen.requires_grad_(True)
        if freeze and step == 3:
            # Both have half of a gradient.
            for parameter in (inner.extra, inner.frozen):
                parameter.requires_grad_(False)
            before = inner.extra.clone()
        images = torch.randn(2, 3, 8, 8, generator=generator)
        log = model.train_step(dict(images=images), optim)
        losses.append(float(log['loss']))
    if freeze:
        assert torch.equal(before, inner.extra)
        assert torch.equal(inner.frozen, torch.ones(2))
    flat = torch.cat(
        [p.detach().double().flatten() for p in model.parameters()]
    )
    both = [torch.empty_like(flat) for _ in range(2)]
    distributed.all_gather(both, flat)
    assert torch.equal(*both)
    return losses, flat.tolist()


def work(rank, store):
    distributed.init_process_group(
        'gloo', init_method=f'file://{store}', rank=rank, world_size=2
    )
    for how, settings in TRAININGS.items():
        for name, wrapper in WRAPPERS.items():
            found = train(wrapper, rank, **settings)
            if rank == 0:
                print(json.dumps([name, how, *found]), flush=True)
    found = train(FlatDistributedDataParallel, rank, count=2, freeze=True)
    if rank == 0:
        print(json.dumps(['flat', 'frozen', *found]), flush=True)
    large = nn.Parameter(torch.zeros(2, dtype=torch.half))
    large.grad = torch.full_like(large, 40_000)
    _Row([large]).average(distributed.group.WORLD)
    if rank == 0:
        print(json.dumps(['large', *large.grad.tolist()]), flush=True)
    try:
        train(FlatDistributedDataParallel, rank, used=False)
    except RuntimeError as error:
        if rank == 0:
            print(json.dumps(['unused', str(error)]), flush=True)
    distributed.destroy_process_group()


if __name__ == '__main__':
    multiprocessing.spawn(work, sys.argv[1:], nprocs=2)
