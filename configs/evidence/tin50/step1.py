_base_ = '../_base_/tin50.py'

# Every pixel in one sequence a direction.
model = dict(
    backbone=dict(step_size=1),
)
