_base_ = '../evmamba-tiny_16xb128-amp-300e_in1k.py'

# Table 5, ES2D alone: no convolution branch, no inverted residual.
model = dict(backbone=dict(block_types=['es2d'] * 4))
