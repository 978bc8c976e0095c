_base_ = '../_base_/tin50.py'

# Sequences of every fourth pixel.
model = dict(
    backbone=dict(step_size=4),
)
