"""Checks that refuse modules which cannot be captured."""

from operator import attrgetter

import torch
from torch import nn

from ..arguments import check_module
from ..ops.tracing import has_global_hooks
from .call import tensors_of

# The four dicts of functions that a module calls beside its forward.
hooks = attrgetter(
    '_forward_hooks',
    '_forward_pre_hooks',
    '_backward_hooks',
    '_backward_pre_hooks',
)


def check_arguments(
    module: nn.Module, dtype: torch.dtype | None, name: str, inputs: object
) -> None:
    """Refuse what no graph takes, with a ValueError."""
    check_module('module', module)
    if not (dtype is None or isinstance(dtype, torch.dtype)):
        raise ValueError(
            'dtype must be torch.float16, torch.bfloat16 or None, got '
            f'{dtype!r}'
        )
    tensors = tensors_of(inputs)
    if tensors is None:
        raise ValueError(
            f'{name} must be a tensor or a sequence of tensors, got '
            f'{type(inputs).__name__}'
        )
    for tensor in tensors:
        if not tensor.is_cuda:
            raise ValueError(
                f'{name} must be on a CUDA device, got {tensor.device}: '
                'CUDA graphs need one'
            )


def check_hooks(module: nn.Module) -> None:
    """Refuse a module whose submodules call hooks, with a ValueError."""
    if has_global_hooks():
        raise ValueError(
            'hooks are registered for all modules, which a graph would not '
            'call; remove them (torch.nn.modules.module)'
        )
    # Those of the module itself run around its forward, replayed or not.
    for name, part in module.named_modules():
        if part is not module and any(hooks(part)):
            raise ValueError(
                f'submodules must have no hooks, got one on {name}: a graph '
                'would not call it; remove it'
            )


def check_training(module: nn.Module) -> None:
    """Refuse a module whose training cannot be captured.

    Args:
        module: As of :func:`evmamba_mm.graphs.graph_training`.

    Raises:
        ValueError: If it contains a SyncBatchNorm, recomputes activations
            (``with_cp``), or a submodule has a hook.
    """
    for name, part in module.named_modules():
        where = name or type(module).__name__
        if type(part).__name__ == 'SyncBatchNorm':
            raise ValueError(
                f'module must have no SyncBatchNorm, got one as {where}: a '
                'graph cannot wait for other processes; use BatchNorm2d '
                "(norm_cfg=dict(type='BN'), and sync_bn=None in the config)"
            )
        if getattr(part, 'with_cp', False):
            raise ValueError(
                f'module must not recompute activations, got {where} with '
                'with_cp=True; set with_cp=False'
            )
    check_hooks(module)
