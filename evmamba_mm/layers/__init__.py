"""Building blocks: modules that exchange feature maps (B, C, H, W).

The maps' memory is channels last, so that the channels-last view of a linear
map, a norm or the scan costs nothing.
"""

from .drop_path import DropPath
from .es2d import ES2D
from .evss_block import EVSSBlock
from .inverted_residual import InvertedResidual
from .layer_norm import LayerNorm, LayerNorm2d
from .patch_embed import PatchEmbed
from .patch_merging import PatchMerging
from .scan_mixer import ScanMixer
from .squeeze_excite import ConvSqueezeExcite, SqueezeExcite
from .ss2d import SS2D
from .vim_block import PatchTokens, VimBlock

__all__ = [
    'ConvSqueezeExcite',
    'DropPath',
    'ES2D',
    'EVSSBlock',
    'InvertedResidual',
    'LayerNorm',
    'LayerNorm2d',
    'PatchEmbed',
    'PatchMerging',
    'PatchTokens',
    'SS2D',
    'ScanMixer',
    'SqueezeExcite',
    'VimBlock',
]
