_base_ = '../_base_/tin50.py'

# Sequences of every third pixel.
model = dict(
    backbone=dict(step_size=3),
)
