_base_ = '../evmamba-tiny_16xb128-amp-300e_in1k.py'

# Table 6, "Previous": inverted residuals early, scans late.
model = dict(
    backbone=dict(block_types=['inverted_residual'] * 2 + ['evss'] * 2),
)
