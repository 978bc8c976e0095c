_base_ = '../_base_/tin50.py'

# ES2D alone, no convolution branch: Table 5.
model = dict(
    backbone=dict(block_types=['es2d'] * 4),
)
