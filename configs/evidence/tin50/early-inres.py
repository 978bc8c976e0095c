_base_ = '../_base_/tin50.py'

# Inverted residuals early, scans late: Table 6, "Previous".
model = dict(
    backbone=dict(block_types=['inverted_residual'] * 2 + ['evss'] * 2),
)
