"""Files as the released training code writes them."""

import argparse

import torch

from evmamba_mm import EfficientVMamba

from ..test_checkpoint import released_like


def released_weights(arch, classes=10, seed=0):
    """Random weights under the released names."""
    torch.manual_seed(seed)
    model = EfficientVMamba(arch)
    weights = released_like(model)
    channels = model.stages[-1][0].conv_pw[0].weight.shape[1]
    weights['classifier.head.weight'] = torch.randn(classes, channels)
    weights['classifier.head.bias'] = torch.randn(classes)
    return weights


def save_released(path, arch='atto', classes=10):
    weights = released_weights(arch, classes)
    torch.save(
        dict(
            epoch=297,
            args=argparse.Namespace(lr=2e-3),
            state_dict={f'module.{k}': v for k, v in weights.items()},
            state_dict_ema={},
        ),
        path,
    )
    return weights
