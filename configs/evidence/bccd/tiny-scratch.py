_base_ = '../_base_/bccd.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='EfficientVMamba',
        arch='tiny',
        out_indices=(1, 2, 3),
        drop_path_rate=0.1,
        init_cfg=None,
    ),
    neck=dict(in_channels=[96, 192, 384], start_level=0),
)
