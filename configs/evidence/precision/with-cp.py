_base_ = '../tin50/tiny.py'

# Stages run anew in the backward pass, to save memory.
model = dict(backbone=dict(with_cp=True))
custom_hooks = []
