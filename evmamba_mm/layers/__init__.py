"""Building blocks of EfficientVMamba, channels last."""

from .drop_path import DropPath
from .es2d import ES2D
from .evss_block import ConvBranch, EVSSBlock
from .inverted_residual import InvertedResidual
from .layer_norm import LayerNorm
from .narrow import narrow_weights
from .patch_embed import PatchEmbed
from .patch_merging import PatchMerging
from .prepared import prepared_weights
from .scan_mixer import ScanMixer
from .squeeze_excite import ConvSqueezeExcite, SqueezeExcite
from .ss2d import SS2D

__all__ = [
    'ConvBranch',
    'ConvSqueezeExcite',
    'DropPath',
    'ES2D',
    'EVSSBlock',
    'InvertedResidual',
    'LayerNorm',
    'PatchEmbed',
    'PatchMerging',
    'SS2D',
    'ScanMixer',
    'SqueezeExcite',
    'narrow_weights',
    'prepared_weights',
]
