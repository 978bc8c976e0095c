_base_ = '../evmamba-tiny_16xb128-amp-300e_in1k.py'

# Table 5, VMamba-T: VMamba's scan, narrowed to the FLOPs of tiny.
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
