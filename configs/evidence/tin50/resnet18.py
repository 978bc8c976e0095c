_base_ = '../_base_/tin50.py'

model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=18),
    head=dict(in_channels=512),
)
