_base_ = '../evmamba-tiny_16xb128-amp-300e_in1k.py'

model = dict(
    backbone=dict(_delete_=True, type='MobileViT', arch='x_small'),
    head=dict(in_channels=384),
)
