"""Compiles kernels as models launch them, without a GPU.

Those are meant that keep tiles in shared memory: of products, and of loads
that run ahead.

    python -m tests.ops.fused.shared_memory

prints a line of JSON for each: what it is, and the bytes of shared memory
that a program takes on the smallest GPU that is meant.
"""

import json
from itertools import product

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from evmamba_mm.ops.fused import (
    batch_norm_triton,
    batch_statistics_triton,
    column_sums_triton,
    gated_linear_add_triton,
    gated_linear_backward_triton,
    gated_linear_triton,
    gated_residual_triton,
    group_linear_triton,
    merge_norm_triton,
    norm_triton,
    patch_norm_triton,
    pooled_norm_triton,
    squeeze_excite_triton,
    sums_triton,
)

SMALLEST = GPUTarget('cuda', 86, 32)
TYPES = {torch.float32: 'fp32', torch.float16: 'fp16', torch.bfloat16: 'bf16'}


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


def compiled(kernel, tensors, numbers, constants, warps, stages=None):
    names, fixed = kernel.arg_names, set(kernel.do_not_specialize or ())
    values = [*tensors, *numbers]
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
    options = {'num_warps': warps}
    if stages is not None:
        options['num_stages'] = stages
    source = ASTSource(kernel, signature, constexprs, attributes)
    return compile(source, target=SMALLEST, options=options)


def launches(room, call):
    """What a function of a room launches."""
    seen = []

    def keep(kernel, grid, *arguments, **options):
        seen.append((kernel, arguments, options))

    for each in (room, sums_triton):
        each.launch = keep
        each.is_misread = lambda x: False
    call()
    return seen


def maps(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype)


def norm_gate_linear(channels):
    y, wide = maps(128, 56, 56, channels), maps(channels, dtype=torch.float32)
    # Not cast yet, as in a first call.
    linear = maps(channels // 2, channels, dtype=torch.float32)
    gated_linear_triton.norm_gate_linear_forward(
        y, y, wide, wide, 1e-5, linear, y.dtype
    )


def norm_gate_linear_backward(channels, dtype):
    y, wide = maps(25088, channels, dtype=dtype), torch.empty(channels)
    linear = maps(channels // 2, channels)
    gated_linear_backward_triton.norm_gate_linear_backward(
        maps(25088, channels // 2), y, y, wide, wide, 1e-5, linear
    )


def gated_linear_add(side, channels, outputs):
    x = maps(128, side, side, channels)
    residual = maps(128, side, side, outputs)
    gated_linear_add_triton.forward(
        residual, x, x[:, 0, 0], maps(outputs, channels), None, x.dtype
    )


def patch_norm(channels):
    image, part = torch.empty(2, 3, 224, 224), maps(channels)
    weight = torch.empty(channels, 3, 4, 4)
    patch_norm_triton.patch_forward(
        image, weight, part, part, part, 1e-5, torch.bfloat16
    )


def group_linear(channels):
    u = maps(128, 28, 28, channels)
    group_linear_triton.group_linear_forward(u, maps(4, 48, channels), 2)


def norm(channels, dtype):
    x, wide = maps(1000, channels, dtype=dtype), torch.empty(channels)
    norm_triton.backward(x, x, None, wide, wide, 1e-5, x, x)
    norm_triton.backward(x, x, x, wide, wide, 1e-5)


def merge_norm(channels, dtype):
    x, dout = maps(2, 8, 8, channels, dtype=dtype), maps(32, 4 * channels)
    weight = torch.empty(4 * channels)
    merge_norm_triton.merge_backward(dout.to(dtype), x, weight, 1e-5)


def batch_norm(channels, dtype):
    x, wide = maps(2, 28, 28, channels, dtype=dtype), torch.empty(channels)
    batch_norm_triton.backward(
        x, x, wide, wide, wide, wide, True, 1e-5, 'gelu'
    )


def batch_statistics(channels, dtype):
    x, wide = maps(2, 28, 28, channels, dtype=dtype), torch.empty(channels)
    batch_statistics_triton.statistics(x, wide, wide, 0.1)


def column_sums(channels, dtype):
    column_sums_triton.column_sums(maps(9999, channels, dtype=dtype))


def pooled_norm(channels, dtype):
    x = maps(2, 28, 28, channels, dtype=dtype)
    pooled_norm_triton.sum_maps(x, x, 1e-5)


def squeeze_excite(channels, dtype):
    x, logits = maps(2, 196, channels, dtype=dtype), torch.empty(2, channels)
    squeeze_excite_triton._channel_sums(x, x, logits)


def gated_residual(channels, dtype):
    x = maps(2, 28, 28, channels, dtype=dtype)
    rows, wide = gated_residual_triton.map_rows(x, x, x), torch.empty(2, 2, 1)
    gated_residual_triton.maps_backward((x, x), rows, wide, wide, 1e-5)


AHEAD = {
    norm_triton: norm,
    merge_norm_triton: merge_norm,
    batch_norm_triton: batch_norm,
    batch_statistics_triton: batch_statistics,
    column_sums_triton: column_sums,
    pooled_norm_triton: pooled_norm,
    squeeze_excite_triton: squeeze_excite,
    gated_residual_triton: gated_residual,
}
CASES = [
    *(
        (room, function, sizes)
        for room, function in AHEAD.items()
        for sizes in product((48, 768), (torch.float32, torch.bfloat16))
    ),
    *((gated_linear_triton, norm_gate_linear, (c,)) for c in (96, 128, 192)),
    *(
        (gated_linear_backward_triton, norm_gate_linear_backward, sizes)
        for sizes in product((96, 128, 192, 256), TYPES)
    ),
    (gated_linear_add_triton, gated_linear_add, (14, 768, 192)),
    (gated_linear_add_triton, gated_linear_add, (7, 1536, 384)),
    (gated_linear_add_triton, gated_linear_add, (7, 3072, 768)),
    (patch_norm_triton, patch_norm, (48,)),
    (patch_norm_triton, patch_norm, (96,)),
    (group_linear_triton, group_linear, (192,)),
]


if __name__ == '__main__':
    for room, function, sizes in CASES:
        found = launches(room, lambda f=function, s=sizes: f(*s))
        for kernel, arguments, options in found:
            made = compiled(kernel, *arguments, **options)
            name = f'{function.__name__}{sizes} {kernel.fn.__name__}'
            print(json.dumps([name, made.metadata.shared]), flush=True)
