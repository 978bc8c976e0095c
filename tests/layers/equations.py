"""The equations that several layers share, in plain torch functions."""

import torch
import torch.nn.functional as F
from torch import nn


def random_map(*shape):
    """A map (B, C, H, W) whose memory is channels last."""
    return torch.randn(shape).to(memory_format=torch.channels_last)


def randomised(module):
    """Gives a module weights and statistics that show each of them."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    for name, buffer in module.named_buffers():
        if name.endswith('running_mean'):
            nn.init.normal_(buffer)
        if name.endswith('running_var'):
            nn.init.uniform_(buffer, 0.5, 2)
    return module


def layer_norm(norm, x):
    """Over the channels of (B, C, H, W)."""
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).square().mean(1, keepdim=True)
    y = (x - mean) / (variance + 1e-5).sqrt()
    return y * norm.weight[:, None, None] + norm.bias[:, None, None]


def batch_norm(norm, x):
    """By the batch's statistics in training, else by the running ones."""
    mean, variance = norm.running_mean, norm.running_var
    if norm.training:
        mean = x.mean((0, 2, 3))
        variance = x.var((0, 2, 3), unbiased=False)
    scale = norm.weight / (variance + 1e-5).sqrt()
    y = (x - mean[:, None, None]) * scale[:, None, None]
    return y + norm.bias[:, None, None]


def squeeze_excite(se, x):
    """The gate is computed from the normalised map, for the map itself."""
    pooled = layer_norm(se.norm, x).mean((2, 3))
    reduce, select = se.global_reduce, se.channel_select
    hidden = F.gelu(pooled @ reduce.weight.T + reduce.bias)
    gate = torch.sigmoid(hidden @ select.weight.T + select.bias)
    return x * gate[:, :, None, None]


def conv_squeeze_excite(se, x):
    """The gate is computed from the mean of the map."""
    reduce, expand = se.conv_reduce, se.conv_expand
    pooled = x.mean((2, 3))
    hidden = F.relu(pooled @ reduce.weight.flatten(1).T + reduce.bias)
    gate = hidden @ expand.weight.flatten(1).T + expand.bias
    return x * gate.sigmoid()[:, :, None, None]
