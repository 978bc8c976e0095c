_base_ = './upernet_vmamba-tiny.py'

model = dict(
    backbone=dict(
        arch='small',
        init_cfg=dict(checkpoint='checkpoints/vmamba-small_in1k.pth'),
    )
)
