_base_ = '../_base_/tin50.py'

# SS2D, VMamba's scan, narrowed to the FLOPs of tiny: Table 5.
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            channels=[32, 64, 128, 256],
            depths=[2, 2, 4, 2],
        ),
        block_types=['ss2d'] * 4,
    ),
    head=dict(in_channels=256),
)
