"""What a model counts: parameters, FLOPs, its receptive field."""

from .flops import count_flops
from .handles import register_flop_handles, selective_scan_flops
from .models import Count, count_backbone, count_config

__all__ = [
    'Count',
    'count_backbone',
    'count_config',
    'count_flops',
    'register_flop_handles',
    'selective_scan_flops',
]
