_base_ = './mask-rcnn-std_evmamba-tiny.py'

model = dict(
    backbone=dict(
        arch='small',
        init_cfg=dict(checkpoint='checkpoints/evmamba-small_in1k.pth'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
