"""Backbones, registered with mmengine's root registry."""

from .arch import ARCHS
from .efficientvmamba import EfficientVMamba

__all__ = ['ARCHS', 'EfficientVMamba']
