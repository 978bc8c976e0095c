_base_ = '../_base_/tin50.py'

# ES2D with the fusion in every stage: Tables 5, 6 and 8.
model = dict(
    backbone=dict(block_types=['evss'] * 4),
)
