_base_ = './mask-rcnn-std_evmamba-tiny.py'

model = dict(
    backbone=dict(
        arch='base',
        init_cfg=dict(checkpoint='checkpoints/evmamba-base_in1k.pth'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
