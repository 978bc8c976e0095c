"""Blocks, changes of them, and what can be seen of a block's call."""

import torch
from torch import nn

from evmamba_mm.fast import difference, run_block
from evmamba_mm.layers import (
    ES2D,
    SS2D,
    EVSSBlock,
    InvertedResidual,
    LayerNorm2d,
    PatchEmbed,
    PatchMerging,
)

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
MODES = [(True, True), (True, False), (False, True), (False, False)]
# Odd maps, so that patch merging pads.
BLOCKS = {
    'evss': (lambda: EVSSBlock(8, ES2D(8, d_state=4)), (2, 8, 3, 5)),
    'ss2d': (lambda: EVSSBlock(8, SS2D(8, 4), fusion=False), (2, 8, 3, 5)),
    'inverted': (lambda: InvertedResidual(8, 2, 0.25), (2, 8, 3, 5)),
    'stem': (lambda: PatchEmbed(3, 8), (2, 3, 13, 18)),
    'merging': (lambda: PatchMerging(4, 8), (2, 4, 3, 5)),
    'norm': (lambda: LayerNorm2d(8), (2, 8, 3, 5)),
}


def randomised(module):
    """Parameters and statistics that no change of a setting leaves alone."""
    generator = torch.Generator().manual_seed(0)

    def noise(x):
        return torch.randn(x.shape, generator=generator).to(x)

    with torch.no_grad():
        for x in module.parameters():
            x += 0.3 * noise(x)
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean += 0.3 * noise(norm.running_mean)
                norm.running_var *= 0.5 + noise(norm.running_var).abs()
    return module


def built(kind):
    torch.manual_seed(0)
    return randomised(BLOCKS[kind][0]()).to(DEVICE)


def input_of(kind):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BLOCKS[kind][1], generator=generator).to(DEVICE)


def changed(kind, change, training=True, checked=False):
    """A block that is changed, with ``checked`` after a check of it."""
    block = built(kind).train(training)
    if checked:
        assert difference(block, input_of(kind)) is None
    torch.manual_seed(2)
    new = change(block)
    return block if new is None else new


def put(block, path, module):
    """Puts a module in the place of another one below a block."""
    parent, _, name = path.rpartition('.')
    module.to(DEVICE).train(block.training)
    setattr(block.get_submodule(parent), name, module)


def by_block(fused):
    return lambda block, x: run_block(block, x, fused)


def seen(block, x, run, with_grad=True, dtype=None):
    """Output, gradients and buffers of one call, or the error it raised."""
    torch.manual_seed(3)
    x = x.detach().clone().requires_grad_(with_grad)
    autocast = torch.autocast(
        DEVICE, dtype or torch.bfloat16, enabled=dtype is not None
    )
    try:
        with torch.set_grad_enabled(with_grad), autocast:
            y = run(block, x)
        y = y if isinstance(y, tuple) else (y,)
        result = {f'output {i}': v.detach() for i, v in enumerate(y)}
        if with_grad:
            generator = torch.Generator().manual_seed(4)
            for v in y:
                dy = torch.randn(v.shape, generator=generator).to(v)
                v.backward(dy, retain_graph=True)
    except (RuntimeError, ValueError) as error:
        return type(error)
    if x.grad is not None:
        result['input'] = x.grad
    for name, parameter in block.named_parameters():
        if parameter.grad is not None:
            result[name] = parameter.grad.detach()
        parameter.grad = None
    for name, buffer in block.named_buffers():
        result[name] = buffer.detach().clone()
    return result


def plain(x):
    """Of a tensor subclass, the tensor."""
    return x.as_subclass(torch.Tensor).double()


def assert_same(actual, expected, tolerance=2e-4):
    if isinstance(actual, type) or isinstance(expected, type):
        assert actual is expected
        return
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        size = max(1.0, float(plain(x).abs().max())) if x.numel() else 1.0
        torch.testing.assert_close(
            plain(actual[name]),
            plain(x),
            rtol=tolerance,
            atol=tolerance * size,
            equal_nan=True,
            msg=lambda message, name=name: f'{name}: {message}',
        )


def is_same(actual, expected, tolerance=3e-6):
    """Whether what both have is equal."""
    if isinstance(actual, type) or isinstance(expected, type):
        return actual is expected
    both = actual.keys() & expected.keys()
    try:
        assert_same(
            {name: actual[name] for name in both},
            {name: expected[name] for name in both},
            tolerance,
        )
    except AssertionError:
        return False
    return True


def odd(x):
    """A change of an input or output that no norm undoes."""
    return torch.sin(3 * x)


class Wrapper(nn.Module):
    """An adapter: another module, and something on top."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return odd(self.module(x))


class LoraLinear(nn.Module):
    def __init__(self, linear, rank=2):
        super().__init__()
        self.base = linear.requires_grad_(False)
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class LoraConv2d(nn.Module):
    def __init__(self, conv, rank=2):
        super().__init__()
        self.base = conv.requires_grad_(False)
        self.down = nn.Conv2d(
            conv.in_channels,
            rank,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            bias=False,
        )
        self.up = nn.Conv2d(rank, conv.out_channels, 1, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def with_lora(module):
    kind = LoraLinear if isinstance(module, nn.Linear) else LoraConv2d
    return kind(module)


class Scaled(nn.Module):
    """A parametrisation."""

    def forward(self, x):
        return 1.5 * x


class Tagged(torch.Tensor):
    """A tensor subclass whose use changes what comes out."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        y = super().__torch_function__(func, types, args, kwargs)
        name = getattr(func, '__name__', '')
        if name in ('linear', 'conv2d', 'layer_norm', 'batch_norm'):
            return odd(y.as_subclass(torch.Tensor))
        return y


def model(**options):
    """A backbone of one block a stage, all outputs."""
    from evmamba_mm import EfficientVMamba

    torch.manual_seed(0)
    defaults = dict(
        arch=dict(channels=(8, 16, 16, 16), depths=(1, 1, 1, 1)),
        out_indices=(0, 1, 2, 3),
        d_state=4,
    )
    return randomised(EfficientVMamba(**{**defaults, **options})).to(DEVICE)


def image(batch=2, height=32, width=32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, height, width, generator=generator)
    return x.to(DEVICE)


def by_model(fused):
    def run(model, x):
        model.fused = fused
        return model(x)

    return run
