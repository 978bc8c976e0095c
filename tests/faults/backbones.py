"""Random backbones and images, compared with naive scans in fp64."""

import copy
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evmamba_mm import EfficientVMamba
from evmamba_mm.backbones import Vim, VMamba

from .compare import check_near, direction

if TYPE_CHECKING:
    from .scans import Draw

BLOCKS = ('evss', 'es2d', 'ss2d', 'inverted_residual')


def build(draw: 'Draw') -> nn.Module:
    """A small backbone with random options."""
    torch.manual_seed(draw.numbers.randrange(2**31))
    on_gpu = torch.cuda.is_available()
    common = dict(in_channels=draw.choose((1, 3, 3, 5)))
    states = draw.choose((1, 4, 16)) if not on_gpu else 16
    kind = draw.choose(('evmamba', 'evmamba', 'evmamba', 'vmamba', 'vim'))
    if kind == 'vim':
        model = Vim(
            dict(channels=draw.choose((16, 24)), depth=draw.size(2)),
            img_size=16,
            patch_size=8,
            out_type=draw.choose(Vim.OUT_TYPES),
            d_state=states,
            **common,
        )
        return model
    stages = draw.size(3)
    widths = [draw.choose((8, 16, 20, 24)) for _ in range(stages)]
    if on_gpu:
        # Kernels are compiled for each width.
        widths = [16, 32, 64][:stages]
    common |= dict(
        arch=dict(channels=widths, depths=[draw.size(2) for _ in widths]),
        out_indices=tuple(range(stages)) if draw.chance(0.5) else -1,
        with_cp=draw.chance(0.2),
    )
    if kind == 'vmamba':
        return VMamba(d_state=states, **common)
    return EfficientVMamba(
        block_types=[draw.choose(BLOCKS) for _ in widths],
        step_size=draw.size(4),
        d_state=states,
        expand_ratio=2 if on_gpu else draw.size(2),
        se_ratio=draw.choose((0.125, 0.5)),
        **common,
    )


def move_from_start(model: nn.Module, draw: 'Draw') -> None:
    """Parameters and statistics that are nowhere at their initial values."""
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=draw.tensors)
                value += 0.05 * noise.abs()


def naive_copy(model: nn.Module) -> nn.Module:
    """The same modules with the naive scan and no kernel."""
    naive = copy.deepcopy(model)
    naive.fused = False
    for module in naive.modules():
        if hasattr(module, 'backend'):
            module.backend = 'naive'
    return naive


def results(
    model: nn.Module, image: Tensor, autocast: torch.dtype | None
) -> dict[str, Tensor]:
    """Outputs, and the gradients of the image and of every parameter."""
    image = image.detach().requires_grad_()
    device = image.device.type
    with torch.autocast(device, autocast, enabled=autocast is not None):
        outputs = model(image)
    loss = sum(
        (
            y.to(torch.promote_types(y.dtype, torch.float32)) * direction(y, i)
        ).sum()
        for i, y in enumerate(outputs)
    )
    named = dict(image=image, **dict(model.named_parameters()))
    gradients = torch.autograd.grad(
        loss, list(named.values()), allow_unused=True
    )
    found = {f'output {i}': y.detach() for i, y in enumerate(outputs)}
    return found | {
        name: g
        for name, g in zip(named, gradients, strict=True)
        if g is not None
    }


def backbone_trial(draw: 'Draw') -> str:
    """One backbone; return its class and how it ran."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = build(draw)
    move_from_start(model, draw)
    model = model.to(device).train(draw.chance(0.5))
    least = 8 if isinstance(model, Vim) else 4
    # A BatchNorm in training needs more than one value a channel.
    batch, sides = draw.size(3, 2), (draw.size(60, least + 4) for _ in '12')
    channels = next(model.patch_embed.parameters()).shape[1]
    image = draw.normal(batch, channels, *sides, dtype=torch.float32)
    autocast = draw.choose((None, None, torch.bfloat16, torch.float16))
    how = 'layers'
    if hasattr(model, 'fused'):
        interpreted = os.environ.get('TRITON_INTERPRET') == '1'
        is_small = image.numel() < 3000
        if device == 'cuda' and draw.chance(0.8):
            model.fused, how = 'auto', 'kernels'
        elif interpreted and is_small and not model.with_cp:
            model.fused, how = True, 'interpreter'
        else:
            model.fused = False
    if how == 'interpreter':
        # It cuts numbers in half precision off where a GPU rounds them.
        autocast = None
    naive = naive_copy(model)
    exact = results(copy.deepcopy(naive).double(), image.double(), None)
    narrow = results(copy.deepcopy(naive), image, autocast)
    actual = results(model, image, autocast)
    for name, value in actual.items():
        check_near(name, value, narrow[name], exact[name])
    dtype = {None: 'fp32', torch.bfloat16: 'bf16', torch.float16: 'fp16'}
    return f'{type(model).__name__}, {how}, {dtype[autocast]}'
