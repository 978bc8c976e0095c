_base_ = './retinanet-std_evmamba-tiny.py'

model = dict(
    backbone=dict(
        arch='small',
        init_cfg=dict(checkpoint='checkpoints/evmamba-small_in1k.pth'),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
