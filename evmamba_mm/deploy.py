"""A faster copy of a model for inference."""

import copy
import logging

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .arguments import checked
from .backbones import EfficientVMamba
from .fast.standard import change_of
from .layers import DropPath, EVSSBlock, InvertedResidual

_logger = logging.getLogger('evmamba_mm')
_HALF = (torch.float16, torch.bfloat16)


def _change(
    name: str, module: nn.Module, kinds: tuple[type[nn.Module], ...]
) -> str | None:
    """Why its class may not say all that a module does, None if it does."""
    if type(module) not in kinds:
        return f'{name} is a {type(module).__name__}'
    if not module.__dict__.keys().isdisjoint(('weight', 'bias')):
        # Pruning leaves a tensor that hides the parameter.
        return f'{name} has a tensor in the place of a parameter'
    return change_of(module, type(module), name)


def _fold_batch_norms(layers: nn.Sequential) -> None:
    """Fold each BatchNorm into the convolution before it.

    A pair with a hook, a patch, a pruned weight or the like stays.
    """
    changed = change_of(layers, nn.Sequential, 'their sequence')
    for i in range(len(layers) - 1):
        conv, norm = layers[i], layers[i + 1]
        if not isinstance(norm, _BatchNorm):
            continue
        why = (
            changed
            or _change('the convolution', conv, (nn.Conv2d,))
            or _change('the norm', norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
        )
        if why is None and norm.running_mean is None:
            why = 'the norm has no running_mean'
        if why is None:
            layers[i] = fuse_conv_bn_eval(conv, norm)
            layers[i + 1] = nn.Identity()
        else:
            _logger.warning(
                'fuse leaves a %s behind a %s as it is: %s',
                type(norm).__name__,
                type(conv).__name__,
                why,
            )


def _fuse_backbone(
    backbone: EfficientVMamba, dtype: torch.dtype | None
) -> None:
    backbone.with_cp = False
    for block in backbone.modules():
        if isinstance(block, EVSSBlock | InvertedResidual):
            for layers in block.modules():
                if isinstance(layers, nn.Sequential):
                    _fold_batch_norms(layers)
        if isinstance(block, DropPath):
            block.drop_prob = 0.0
    if dtype is not None:
        for layer in backbone.modules():
            if type(layer) in (nn.Linear, nn.Conv2d):
                layer.to(dtype)


@checked
def fuse(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Copy of a model for inference with its BatchNorms folded.

    In every EfficientVMamba of the model, this folds each BatchNorm into the
    convolution before it, leaves an ``nn.Identity`` in its place, and disables
    stochastic depth and recomputation. Necks and heads do not change. The
    outputs are those of the model in evaluation mode, up to rounding. Do not
    train the copy; its state dict does not fit an ordinary model.

    Args:
        model: A backbone, or any module that contains one; it is not changed.
            One that was fused before gives an equal copy.
        dtype: Half precision dtype in which the weights of linear layers and
            convolutions are kept, for a copy that runs under autocast to this
            dtype: it then casts none in a call. None leaves them as they are.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: If the model contains no EfficientVMamba, or the dtype is
            no half precision one.
    """
    if dtype is not None and not any(dtype is half for half in _HALF):
        raise ValueError(
            f'dtype must be torch.float16, torch.bfloat16 or None, got {dtype}'
        )
    if not any(isinstance(m, EfficientVMamba) for m in model.modules()):
        raise ValueError(
            'model must be or contain an EfficientVMamba, got '
            f'{type(model).__name__} without one'
        )
    fused = copy.deepcopy(model).eval()
    for module in fused.modules():
        if isinstance(module, EfficientVMamba):
            _fuse_backbone(module, dtype)
    # The modules that replace layers start out in training mode.
    return fused.eval()
