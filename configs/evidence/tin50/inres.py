_base_ = '../_base_/tin50.py'

# Inverted residuals in every stage: Table 8.
model = dict(
    backbone=dict(block_types=['inverted_residual'] * 4),
)
