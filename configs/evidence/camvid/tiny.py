_base_ = '../_base_/camvid.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='EfficientVMamba',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/evidence/tin50/tiny-2/epoch_15.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
