"""Activations inside of kernels, and their slopes."""

import triton
import triton.language as tl


@triton.jit
def _normal(x):
    """Density of the standard normal distribution, and its integral to x.

    Abramowitz and Stegun, 26.2.17: off by 7.5e-8 at most, which is what fp32
    leaves of a value near 1. The density is what the formula needs anyway,
    so that a slope takes little more than the activation, and both a third
    of what the library's erf does.
    """
    density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    t = 1.0 / (1.0 + 0.2316419 * tl.abs(x))
    tail = 0.31938153 + t * (
        -0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))
    )
    tail *= density * t
    return density, tl.where(x < 0.0, tail, 1.0 - tail)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """'none', 'relu', 'gelu' or 'silu' of a tile in fp32."""
    if ACTIVATION == 'relu':
        x = tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == 'gelu':
        _, integral = _normal(x)
        x = x * integral
    elif ACTIVATION == 'silu':
        x = x * tl.sigmoid(x)
    return x


@triton.jit
def slope(x, ACTIVATION: tl.constexpr):
    """Derivative of an activation but 'none'."""
    if ACTIVATION == 'relu':
        result = tl.where(x > 0.0, 1.0, 0.0)
    elif ACTIVATION == 'gelu':
        density, integral = _normal(x)
        result = integral + x * density
    else:
        gate = tl.sigmoid(x)
        result = gate * (1.0 + x * (1.0 - gate))
    return result
