"""Compiles the kernels as models launch them, without a GPU.

    python -m tests.ops.triton.shared_memory

prints a line of JSON for each: the kernel, the architecture, the dtype of its
map, its constants, and the bytes of shared memory that a program takes.
"""

import json
from itertools import product

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from evmamba_mm.ops.triton import (
    augment,
    batch_norm,
    depthwise,
    erase,
    fusion_gates,
    gated_residual,
    group_linear,
    layer_norm,
    patch_embed,
    squeeze_excite,
    sums,
)

FAMILIES = (
    augment,
    batch_norm,
    depthwise,
    erase,
    fusion_gates,
    gated_residual,
    group_linear,
    layer_norm,
    patch_embed,
    squeeze_excite,
    sums,
)
# Of the GPUs with tensor cores for bf16, the one with least shared memory.
SMALLEST, LARGER = 86, (80, 90)
FP32, BF16 = torch.float32, torch.bfloat16
TYPES = {
    FP32: 'fp32',
    BF16: 'bf16',
    torch.uint8: 'u8',
    torch.int32: 'i32',
    torch.int64: 'i64',
}


def parameter(value, specialised):
    """Type of a kernel's argument, and whether it is a multiple of 16."""
    if value is None:
        return 'constexpr', False
    if isinstance(value, torch.Tensor):
        return f'*{TYPES[value.dtype]}', True
    if isinstance(value, float):
        return 'fp32', False
    if specialised and value == 1:
        return 'constexpr', False
    return 'i32', specialised and value % 16 == 0


def source(kernel, tensors, numbers, constants):
    """A launch as Triton's compiler takes it."""
    names, fixed = kernel.arg_names, set(kernel.do_not_specialize or ())
    values = [*tensors, *numbers]
    assert len(names) == len(values) + len(constants)
    signature, constexprs, attributes = {}, {}, {}
    for i, (name, value) in enumerate(zip(names, values, strict=False)):
        signature[name], even = parameter(value, name not in fixed)
        if signature[name] == 'constexpr':
            constexprs[i,] = value
        if even:
            attributes[i,] = [['tt.divisibility', 16]]
    for i, value in enumerate(constants, len(values)):
        signature[names[i]] = 'constexpr'
        constexprs[i,] = value
    return ASTSource(kernel, signature, constexprs, attributes)


def launches(calls):
    """What functions launch, each kernel once for each set of constants."""
    seen = {}

    def keep(
        kernel,
        grid,
        tensors,
        numbers,
        constants,
        warps,
        stages=None,
        contract=True,
    ):
        made = source(kernel, tensors, numbers, constants)
        options = dict(num_warps=warps, enable_fp_fusion=contract)
        if stages is not None:
            options['num_stages'] = stages
        dtypes = sorted({TYPES[x.dtype] for x in tensors if x is not None})
        seen[made.hash(), str(options)] = made, options, dtypes, constants

    for family in FAMILIES:
        family.launch = keep
        family.is_misread = lambda x: False
    for call in calls:
        call()
    return seen.values()


def maps(*shape, dtype=BF16):
    return torch.empty(shape, dtype=dtype).requires_grad_()


def weights(*shape, dtype=FP32):
    return torch.empty(shape, dtype=dtype).requires_grad_()


def train(function, *arguments):
    y = function(*arguments)
    y.backward(torch.empty_like(y))


def layer_norms(channels, dtype):
    x = maps(128, 28, 28, channels, dtype=dtype)
    norm = weights(channels), weights(channels), 1e-5
    train(layer_norm.layer_norm, x, *norm, dtype)
    norm = weights(4 * channels), weights(4 * channels), 1e-5
    train(layer_norm.merge_layer_norm, x, *norm, dtype)


def gates(channels, dtype):
    """Norm, gate and projection, by the norm's kernels."""
    y, norm = maps(99999, channels, dtype=dtype), weights(channels)
    with torch.no_grad():
        layer_norm.norm_forward(y, y, norm, norm, 1e-5, dtype)
        layer_norm.norm_backward(y, y, y, norm, norm, 1e-5)


def batch_norms(channels, dtype):
    x = maps(128, 28, 28, channels, dtype=dtype)
    vectors = [weights(channels) for _ in range(2)]
    running = [torch.empty(channels) for _ in range(2)]
    count = torch.zeros((), dtype=torch.int64)
    settings = True, 0.1, 1e-5, 'gelu', dtype, count
    train(batch_norm.batch_norm_act, x, *vectors, *running, *settings)
    with torch.no_grad():
        batch_norm.batch_norm_add_inference(x, *vectors, *running, 1e-5, x)


def convolutions(channels, dtype):
    x, weight = maps(8, 28, 28, channels, dtype=dtype), weights(channels)
    kernel = weights(channels, 1, 3, 3)
    train(depthwise.depthwise_conv3x3, x, kernel, weight, 'silu', dtype)
    norm = batch_norm.ChannelNorm(weight, weight, weight, weight, 1e-5)
    with torch.no_grad():
        depthwise.depthwise_conv3x3_inference(
            x, kernel, None, 'relu', dtype, norm, norm, 'relu'
        )


def residuals(channels, dtype):
    x, hidden = maps(128, 28, 28, channels, dtype=dtype), channels // 8
    train(
        gated_residual.gated_residual,
        *(x, x, x),
        *(weights(channels), weights(channels), 1e-5),
        *(weights(hidden, channels), weights(hidden)),
        *(weights(channels, hidden), weights(channels)),
        torch.empty(2, dtype=dtype),
    )


def attention(channels, dtype):
    x, hidden = maps(128, 28, 28, channels, dtype=dtype), channels // 8
    train(
        squeeze_excite.squeeze_excite,
        x,
        *(weights(hidden, channels), weights(hidden)),
        *(weights(channels, hidden), weights(channels)),
        dtype,
    )


def normed(channels, dtype):
    """BatchNorm and ReLU inside of what follows."""
    x, hidden = maps(128, 14, 14, channels, dtype=dtype), channels // 8
    vector = weights(channels)
    norm = batch_norm.ChannelNorm(*[vector] * 4, 1e-5, True)
    kernel = weights(channels, 1, 3, 3)
    train(depthwise.depthwise_conv3x3, x, kernel, None, 'none', dtype, norm)
    train(
        squeeze_excite.squeeze_excite,
        *(x, weights(hidden, channels), weights(hidden)),
        *(weights(channels, hidden), vector, dtype, None, norm),
    )


def stems(channels, dtype):
    vectors = [weights(channels) for _ in range(3)]
    train(
        patch_embed.patch_layer_norm,
        torch.empty(2, 3, 64, 64),
        weights(channels, 3, 4, 4),
        *vectors,
        1e-5,
        dtype,
    )


def projections(channels, dtype):
    """Of the scan: B, C and the step sizes of each group of pixels."""
    u = maps(128, 28, 28, channels, dtype=dtype).detach()
    rank, step = -(-channels // 32), 2
    weight = torch.empty(4, rank + 32, channels)
    dproj = group_linear.project_forward(u, weight, rank, step)
    group_linear.project_backward(dproj, u, weight, rank, step, u)


def augmentations(batch, size):
    images = torch.empty(
        (batch, 3, size, size),
        dtype=torch.uint8,
        memory_format=torch.channels_last,
    )
    augment.augment(images, torch.empty(1, batch, augment.NUMBERS))
    boxes = torch.empty(2, 6, dtype=torch.int32)
    erase.erase(images, boxes, None)
    erase.erase(images, boxes, ((1.0,) * 3, (1.0,) * 3))


SIZES = ((48, BF16), (384, FP32))
CASES = (
    *product(
        (
            *(layer_norms, gates, batch_norms, convolutions, residuals),
            *(attention, normed),
        ),
        SIZES,
    ),
    *product((stems,), ((48, BF16), (96, FP32), (192, BF16))),
    (augmentations, (128, 224)),
    *product((projections,), ((96, BF16), (192, FP32), (768, BF16))),
)


if __name__ == '__main__':
    torch.backends.cuda.matmul.allow_tf32 = True
    calls = [lambda f=function, s=sizes: f(*s) for function, sizes in CASES]
    compiled = set()
    for made, options, dtypes, constants in launches(calls):
        name = f'{made.fn.fn.__module__}.{made.name}'.split('.triton.')[-1]
        for architecture in (SMALLEST, *LARGER):
            # Large GPUs have room; whether it compiles depends on the dtypes.
            kind = name, architecture, *dtypes
            if architecture != SMALLEST and kind in compiled:
                continue
            compiled.add(kind)
            target = GPUTarget('cuda', architecture, 32)
            found = compile(made, target=target, options=options)
            line = [name, architecture, dtypes, constants]
            print(json.dumps([*line, found.metadata.shared]), flush=True)
