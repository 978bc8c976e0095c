"""A learning rate that falls from the head to the stem, in every toolbox.

mmpretrain's constructor takes classifiers alone, and those of mmdet and mmseg
know the names of three backbones.
"""

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

SCAN_BIAS = 'dt_projs_bias'
BIAS_RULES = {'bias_lr_mult': 'lr_mult', 'bias_decay_mult': 'decay_mult'}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with a learning rate by depth.

    A parameter at depth d of n has the learning rate times
    ``layer_decay_rate ** (n - 1 - d)``; neck and head keep theirs. The
    backbone tells depths by ``get_layer_depth``. Rules for biases hold for
    ``dt_projs_bias`` of the scan too. Name it as ``base_constructor`` of
    :class:`GroupedOptimWrapperConstructor` to have a group for each depth
    and not for each parameter.

    Args:
        optim_wrapper_cfg: Config of the wrapper and its optimiser.
        paramwise_cfg: As of mmengine's constructor, and
            ``layer_decay_rate``, above 0 and at most 1.

    Raises:
        ValueError: If the rate is missing or illegal, or no part of the model
            has ``get_layer_depth``.
    """

    def __init__(
        self,
        optim_wrapper_cfg: dict[str, Any],
        paramwise_cfg: dict[str, Any] | None = None,
    ) -> None:
        paramwise_cfg = _with_scan_biases(paramwise_cfg or {})
        self.rate = paramwise_cfg.pop('layer_decay_rate', None)
        if not isinstance(self.rate, (int, float)) or not 0 < self.rate <= 1:
            raise ValueError(
                'paramwise_cfg.layer_decay_rate must be above 0 and at most '
                f'1, got {self.rate!r}'
            )
        # mmengine makes a group a parameter where anything is set.
        paramwise_cfg.setdefault('bias_lr_mult', 1.0)
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def add_params(
        self,
        params: list[dict[str, Any]],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Add a group for each parameter, its learning rate by depth."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return
        place, backbone = _find_backbone(module)
        names = {p: name for name, p in module.named_parameters()}
        for group in params:
            name = names[group['params'][0]]
            depth, count = backbone.get_layer_depth(name, place)
            scale = self.rate ** (count - 1 - depth)
            group['lr'] = group.get('lr', self.base_lr) * scale


def _find_backbone(model: nn.Module) -> tuple[str, nn.Module]:
    """The part that knows depths, and the prefix of its parameters."""
    for name, module in model.named_modules():
        # A classifier of mmpretrain only passes the question on.
        passes_on = hasattr(module, 'backbone')
        if hasattr(module, 'get_layer_depth') and not passes_on:
            return f'{name}.' if name else '', module
    raise ValueError(
        f'{type(model).__name__} has no backbone with get_layer_depth, which '
        'layer-wise decay asks for'
    )


def _with_scan_biases(paramwise_cfg: dict[str, Any]) -> dict[str, Any]:
    """A copy of the options whose rules for biases hold for the scan's too.

    mmengine knows a bias by its name, 'bias'. A rule of the config's own for
    ``dt_projs_bias`` stays.
    """
    rules = {
        rule: paramwise_cfg[key]
        for key, rule in BIAS_RULES.items()
        if paramwise_cfg.get(key) is not None
    }
    keys = dict(paramwise_cfg.get('custom_keys') or {})
    if not rules or any(SCAN_BIAS in key for key in keys):
        return dict(paramwise_cfg)
    return {**paramwise_cfg, 'custom_keys': {**keys, SCAN_BIAS: rules}}
