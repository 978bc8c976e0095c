"""Data sets that the package generates."""

from .digit_scenes import (
    CLASSES,
    is_digit_scenes,
    make_digit_scenes,
    read_fingerprint,
)

__all__ = [
    'CLASSES',
    'is_digit_scenes',
    'make_digit_scenes',
    'read_fingerprint',
]
