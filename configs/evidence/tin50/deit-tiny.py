_base_ = '../_base_/tin50.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch='deit-tiny',
        img_size=128,
        patch_size=16,
        drop_path_rate=0.1,
    ),
    neck=None,
    head=dict(in_channels=192),
)
