_base_ = '../_base_/tin50.py'

model = dict(
    backbone=dict(_delete_=True, type='MobileViT', arch='x_small'),
    head=dict(in_channels=384),
)
