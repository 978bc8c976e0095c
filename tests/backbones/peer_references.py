"""VMamba and Vim written plainly, on the names of their released weights.

One image at a time, a loop over time, no line shared with the package.
"""

import torch
from torch.nn import functional as F


def selective_scan(u, dt, B, C, bias, A_log, D):
    """Scans one sequence (L, channels) step by step."""
    delta = F.softplus(dt + bias)
    decay = -A_log.exp()
    state = torch.zeros_like(decay)
    outputs = []
    for t in range(len(u)):
        state = state * (delta[t, :, None] * decay).exp()
        state = state + (delta[t] * u[t])[:, None] * B[t]
        outputs.append(state @ C[t] + D * u[t])
    return torch.stack(outputs)


def ss2d(x, w):
    """Maps (H, W, C) by the weights of one `self_attention`."""
    height, width = x.shape[:2]
    value, gate = (x @ w['in_proj.weight'].T).chunk(2, dim=-1)
    value = F.silu(
        F.conv2d(
            value.permute(2, 0, 1)[None],
            w['conv2d.weight'],
            w['conv2d.bias'],
            padding=1,
            groups=value.shape[-1],
        )
    )[0].permute(1, 2, 0)
    tokens = value.reshape(height * width, -1)
    by_row = torch.arange(height * width)
    by_column = by_row.reshape(height, width).T.flatten()
    orders = [by_row, by_column, by_row.flip(0), by_column.flip(0)]
    inner, rank = w['dt_projs_weight'].shape[1:]
    states = w['A_logs'].shape[1]
    total = torch.zeros_like(tokens)
    for k, order in enumerate(orders):
        u = tokens[order]
        projected = u @ w['x_proj_weight'][k].T
        dt, B, C = projected.split([rank, states, states], dim=-1)
        rows = slice(k * inner, (k + 1) * inner)
        y = selective_scan(
            u,
            dt @ w['dt_projs_weight'][k].T,
            B,
            C,
            w['dt_projs_bias'][k],
            w['A_logs'][rows],
            w['Ds'][rows],
        )
        total[order] += y
    y = F.layer_norm(total, (inner,), w['out_norm.weight'], w['out_norm.bias'])
    y = y.view(height, width, inner) * F.silu(gate)
    return y @ w['out_proj.weight'].T


def part(weights, prefix):
    """The weights below a prefix, without it."""
    return {
        key.removeprefix(prefix): value
        for key, value in weights.items()
        if key.startswith(prefix)
    }


def layer_norm(x, weights, name):
    scale, shift = weights[f'{name}.weight'], weights[f'{name}.bias']
    return F.layer_norm(x, x.shape[-1:], scale, shift)


def vmamba_logits(weights, image, depths):
    """Class scores of one image (3, H, W)."""
    x = F.conv2d(
        image[None],
        weights['patch_embed.proj.weight'],
        weights['patch_embed.proj.bias'],
        stride=4,
    )[0].permute(1, 2, 0)
    x = layer_norm(x, weights, 'patch_embed.norm')
    for stage, depth in enumerate(depths):
        for index in range(depth):
            block = f'layers.{stage}.blocks.{index}.'
            n = layer_norm(x, weights, f'{block}ln_1')
            x = x + ss2d(n, part(weights, f'{block}self_attention.'))
        if stage < len(depths) - 1:
            corners = [x[i::2, j::2] for j in (0, 1) for i in (0, 1)]
            merge = f'layers.{stage}.downsample'
            x = layer_norm(torch.cat(corners, -1), weights, f'{merge}.norm')
            x = x @ weights[f'{merge}.reduction.weight'].T
    pooled = layer_norm(x, weights, 'norm').mean((0, 1))
    return F.linear(pooled, weights['head.weight'], weights['head.bias'])


def rms_norm(x, weight):
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def one_direction(tokens, gate, w, b, A_log):
    """Mamba's inner part; `b` ends the names of the backward direction."""
    length = len(tokens)
    u = F.conv1d(
        tokens.T[None],
        w[f'conv1d{b}.weight'],
        w[f'conv1d{b}.bias'],
        padding=3,
        groups=tokens.shape[1],
    )[0, :, :length].T
    u = F.silu(u)
    rank, states = w[f'dt_proj{b}.weight'].shape[1], A_log.shape[1]
    projected = u @ w[f'x_proj{b}.weight'].T
    dt, B, C = projected.split([rank, states, states], dim=-1)
    y = selective_scan(
        u,
        dt @ w[f'dt_proj{b}.weight'].T,
        B,
        C,
        w[f'dt_proj{b}.bias'],
        A_log,
        w[f'D{b}'],
    )
    return y * F.silu(gate)


def bi_mamba(x, w):
    """Maps (L, C) by the weights of one `mixer`."""
    tokens, gate = (x @ w['in_proj.weight'].T).chunk(2, dim=-1)
    forwards = one_direction(tokens, gate, w, '', w['A_log'])
    backwards = one_direction(
        tokens.flip(0), gate.flip(0), w, '_b', w['A_b_log']
    )
    return (forwards + backwards.flip(0)) / 2 @ w['out_proj.weight'].T


def vim_tokens(weights, image, depth):
    """Normalised tokens (L, C) of one image, and the class token's place."""
    patches = F.conv2d(
        image[None],
        weights['patch_embed.proj.weight'],
        weights['patch_embed.proj.bias'],
        stride=weights['patch_embed.proj.weight'].shape[-1],
    )[0]
    patches = patches.flatten(1).T
    middle = len(patches) // 2
    x = torch.cat(
        [patches[:middle], weights['cls_token'][0], patches[middle:]]
    )
    x = x + weights['pos_embed'][0]
    for index in range(depth):
        n = rms_norm(x, weights[f'layers.{index}.norm.weight'])
        x = x + bi_mamba(n, part(weights, f'layers.{index}.mixer.'))
    return rms_norm(x, weights['norm_f.weight']), middle


def vim_logits(weights, image, depth):
    """Class scores of one image (3, H, W)."""
    tokens, middle = vim_tokens(weights, image, depth)
    head = weights['head.weight'], weights['head.bias']
    return F.linear(tokens[middle], *head)
