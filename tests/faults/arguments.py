"""Gives every argument of every public class and function illegal values.

    python -m tests.faults.arguments --out FILE

Each must raise a ValueError that names the argument. What else happens is
listed, and the exit status is then 1.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

import evmamba_mm
from evmamba_mm import deploy, graphs, layers, ops
from evmamba_mm.backbones import Vim, VMamba

from .record import Counts, write_record

OBJECT = object()
VALUES = (
    *(None, 'no', 'False', '', b'1', True, 0, -1, 1.5, 10**9, float('nan')),
    *(float('inf'), 'two', [], {}, (), ['a'], [1.5], [True], [None]),
    *({'type': 5}, OBJECT, int, np.ones(3), torch.ones(2)),
)


@dataclass(frozen=True)
class Target:
    """A class or a function, and arguments that it takes.

    Args:
        make: The class or function.
        legal: Its arguments without a default, and small sizes for the rest.
        free: Arguments that take anything, or that belong to the host.
        takes: By argument, the values of :data:`VALUES` that are legal.
    """

    make: Callable
    legal: dict[str, Any] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    takes: dict[str, tuple] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.make.__name__


def scan_tensors() -> dict[str, torch.Tensor]:
    return dict(
        u=torch.ones(1, 2, 3),
        delta=torch.ones(1, 2, 3),
        A=-torch.ones(2, 2),
        B=torch.ones(1, 1, 2, 3),
        C=torch.ones(1, 1, 2, 3),
    )


def map_tensors() -> dict[str, torch.Tensor]:
    return dict(
        x=torch.ones(1, 2, 2, 2),
        x_proj_weight=torch.ones(4, 5, 2),
        dt_projs_weight=torch.ones(4, 2, 1),
        dt_projs_bias=torch.ones(4, 2),
        A_logs=torch.ones(8, 2),
        Ds=torch.ones(8),
    )


def call_a_backbone(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return evmamba_mm.EfficientVMamba('atto')(image)


BACKBONE = dict(
    init_cfg=(None, [], ()),
    with_cp=(True,),
    norm_eval=(True,),
    fused=(True,),
    frozen_stages=(0, -1),
    out_indices=(0, -1),
    drop_path_rate=(0,),
    dt_rank=(None, [None]),
    se_ratio=(1.5, np.int64(3)),
    inverted_se_ratio=(1.5, np.int64(3)),
)
# A class of torch is a factory too, if a strange one.
LAYER = dict(
    act=(int,),
    dt_rank=(None,),
    drop_path_rate=(0,),
    fusion=(True,),
    reduce_ratio=(1.5, np.int64(3)),
    se_ratio=(1.5, np.int64(3)),
    squeeze_ratio=(1.5, np.int64(3)),
)
# GPUs that a machine may have.
INDICES = (0, 10**9)
# Numbers as large as these would take the memory, and are no mistakes.
LARGE = (
    *('channels', 'd_conv', 'd_state', 'dt_rank', 'expand_ratio', 'hidden'),
    *('img_size', 'in_channels', 'inverted_expand_ratio', 'num_classes'),
    *('out_channels', 'parameter_sets', 'patch_size', 'se_ratio'),
    *('inverted_se_ratio', 'squeeze_ratio', 'reduce_ratio', 'height', 'width'),
)
TARGETS = (
    Target(evmamba_mm.EfficientVMamba, dict(arch='atto'), takes=BACKBONE),
    Target(VMamba, dict(arch='atto'), takes=BACKBONE),
    Target(Vim, dict(arch='atto', img_size=32), takes=BACKBONE),
    Target(layers.ES2D, dict(channels=4), takes=LAYER),
    Target(layers.SS2D, dict(channels=4), takes=LAYER),
    Target(layers.DropPath, takes=dict(drop_prob=(0,))),
    Target(
        layers.EVSSBlock,
        dict(channels=4, mixer=nn.Identity()),
        takes=LAYER,
    ),
    Target(layers.InvertedResidual, dict(channels=4), takes=LAYER),
    Target(layers.LayerNorm2d, dict(channels=4)),
    Target(layers.PatchEmbed, dict(in_channels=3, channels=4)),
    Target(layers.PatchMerging, dict(in_channels=3, out_channels=4)),
    Target(layers.PatchTokens, dict(in_channels=3, channels=4)),
    Target(layers.SqueezeExcite, dict(channels=4), takes=LAYER),
    Target(layers.ConvSqueezeExcite, dict(channels=4, hidden=2), takes=LAYER),
    Target(layers.VimBlock, dict(channels=4), takes=LAYER),
    Target(
        evmamba_mm.CUDAGraphHook,
        takes=dict(
            module=('no', 'False', 'two', ['a']),
            shapes=(10**9,),
            repeats=(10**9,),
            strict=(True,),
        ),
    ),
    Target(evmamba_mm.DeferredRuntimeInfoHook, takes=dict(limit=(10**9,))),
    Target(
        evmamba_mm.BatchDataPreprocessor,
        dict(mean=[0.0], std=[1.0], num_classes=3),
        takes=dict(
            mean=([1.5],),
            std=([1.5],),
            to_rgb=(True,),
            to_onehot=(True,),
            num_classes=(None,),
            batch_augments=(None, {}),
            image_augments=(None, [], ()),
        ),
    ),
    Target(
        evmamba_mm.GroupedOptimWrapperConstructor,
        dict(optim_wrapper_cfg={}),
        takes=dict(
            optim_wrapper_cfg=({}, {'type': 5}),
            paramwise_cfg=(None, {}, {'type': 5}),
        ),
    ),
    Target(
        evmamba_mm.ForeachExponentialMovingAverage,
        dict(model=nn.Linear(1, 1)),
        takes=dict(
            device=(None, *INDICES), interval=(10**9,), update_buffers=(True,)
        ),
    ),
    Target(
        ops.selective_scan,
        scan_tensors(),
        takes=dict(
            D=(None, torch.ones(2)),
            delta_bias=(None, torch.ones(2)),
            delta_softplus=(True,),
        ),
    ),
    Target(ops.es2d_scan, map_tensors()),
    Target(ops.ss2d_scan, map_tensors()),
    Target(ops.atrous_scan, dict(x=torch.ones(1, 2, 2, 1))),
    Target(ops.cross_scan, dict(x=torch.ones(1, 2, 2, 1))),
    Target(
        ops.atrous_merge, dict(y=torch.ones(1, 4, 1, 1), height=2, width=2)
    ),
    Target(ops.cross_merge, dict(y=torch.ones(1, 4, 1, 4), height=2, width=2)),
    Target(ops.atrous_parameter_sets, dict(step_size=2)),
    Target(
        deploy.fuse,
        dict(model=evmamba_mm.EfficientVMamba('atto')),
        takes=dict(dtype=(None,)),
    ),
    Target(
        graphs.graph_training,
        dict(module=nn.Linear(1, 1), inputs=torch.ones(1)),
        takes=dict(dtype=(None,)),
    ),
    Target(
        graphs.graph_inference,
        dict(module=nn.Linear(1, 1), image=torch.ones(1)),
        takes=dict(dtype=(None,)),
    ),
    Target(
        call_a_backbone,
        dict(image=torch.ones(1, 3, 32, 32)),
    ),
)


def is_legal(target: Target, name: str, value: Any) -> bool:
    legal = target.takes.get(name, ())
    return any(value is x or same(value, x) for x in legal)


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(np.all(one == other))


def tries() -> Iterator[tuple[Target, str, Any]]:
    """Every target with every argument and every value but the legal ones."""
    for target in TARGETS:
        for name in inspect.signature(target.make).parameters:
            if name in target.free:
                continue
            for value in VALUES:
                is_large = type(value) is int and value > 1000
                if is_legal(target, name, value) or (
                    is_large and name in LARGE
                ):
                    continue
                yield target, name, value


def outcome(target: Target, name: str, value: Any) -> str:
    """'clear', or what happened instead."""
    try:
        target.make(**{**target.legal, name: value})
    except ValueError as error:
        named = re.search(rf'(?<![a-z_]){name}\b', str(error))
        return 'clear' if named else f'unnamed: {error}'
    except Exception as error:
        return f'{type(error).__name__}: {str(error).splitlines()[0]}'
    return 'accepted'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', help='data file of the counts')
    args = parser.parse_args(argv)
    counts = Counts()
    for target, name, value in tries():
        found = outcome(target, name, value)
        counts.add(target.name, found == 'clear')
        if found != 'clear':
            shown = repr(value).replace('\n', ' ')
            print(f'{target.name}({name}={shown[:60]}): {found}', flush=True)
    command = 'python -m tests.faults.arguments --out FILE'
    return write_record(args.out, command, 'a ValueError by name', counts)


if __name__ == '__main__':
    sys.exit(main())
