"""Backbones, registered with mmengine's root registry."""

from .arch import ARCHS
from .efficientvmamba import EfficientVMamba
from .vim import VIM_ARCHS, Vim
from .vmamba import VMAMBA_ARCHS, VMamba

__all__ = [
    'ARCHS',
    'VIM_ARCHS',
    'VMAMBA_ARCHS',
    'EfficientVMamba',
    'VMamba',
    'Vim',
]
