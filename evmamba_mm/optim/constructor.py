"""An optimiser with few parameter groups, from the configs that make many.

mmengine's constructors make a group for each parameter where a config has a
``paramwise_cfg``. Optimisers update a group by a few kernels for all of its
tensors, so a group a tensor costs 20 times as much.
"""

import inspect
from typing import Any

import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from torch import nn
from torch.optim import Optimizer

from ..arguments import checked
from .groups import merge_equal_groups


def _takes_fused(config: dict[str, Any]) -> bool:
    """Whether an optimiser has a fused form that the config leaves open."""
    kind = config.get('type')
    if isinstance(kind, str):
        kind = OPTIMIZERS.get(kind)
    if not (inspect.isclass(kind) and issubclass(kind, Optimizer)):
        return False
    names = inspect.signature(kind).parameters
    chosen = ('fused', 'foreach', 'differentiable')
    is_chosen = any(config.get(name) is not None for name in chosen)
    return 'fused' in names and not is_chosen


def _is_on_gpu(model: nn.Module) -> bool:
    trained = [p for p in model.parameters() if p.requires_grad]
    return bool(trained) and all(
        p.is_cuda and torch.is_floating_point(p) for p in trained
    )


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor:
    """Build an optimiser as another constructor does, but with few groups.

    Groups with equal settings are merged. An optimiser that torch has a fused
    form of takes it where all parameters are on a GPU, unless the config sets
    ``fused`` or ``foreach``. A checkpoint whose optimiser has the groups of
    the other constructor is loaded too.

    Args:
        optim_wrapper_cfg: Config of the wrapper and its optimiser. Its key
            ``base_constructor`` names the other constructor, by default
            mmengine's 'DefaultOptimWrapperConstructor'.
        paramwise_cfg: Options of the other constructor.
    """

    @checked
    def __init__(
        self,
        optim_wrapper_cfg: dict[str, Any],
        paramwise_cfg: dict[str, Any] | None = None,
    ) -> None:
        self.optim_wrapper_cfg = optim_wrapper_cfg.copy()
        self.base = self.optim_wrapper_cfg.pop(
            'base_constructor', 'DefaultOptimWrapperConstructor'
        )
        self.paramwise_cfg = paramwise_cfg

    def __call__(self, model: nn.Module) -> OptimWrapper | OptimWrapperDict:
        """Build the wrapper of a model's optimiser.

        Raises:
            ValueError: If a parameter is in several groups.
        """
        config = self.optim_wrapper_cfg.copy()
        optimizer = config.get('optimizer')
        if optimizer and _takes_fused(optimizer) and _is_on_gpu(model):
            config['optimizer'] = dict(optimizer, fused=True)
        base = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(
                type=self.base,
                optim_wrapper_cfg=config,
                paramwise_cfg=self.paramwise_cfg,
            )
        )
        wrapper = base(model)
        several = isinstance(wrapper, OptimWrapperDict)
        for each in wrapper.values() if several else [wrapper]:
            merge_equal_groups(each.optimizer, self.base)
        return wrapper
