_base_ = '../evmamba-base_16xb64-amp-300e_in1k.py'

# Table 5, VMamba-B: VMamba's scan, narrowed to the FLOPs of base. The
# widths are inferred from Params and FLOPs.
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            channels=[80, 160, 320, 640],
            depths=[2, 2, 9, 2],
        ),
        block_types=['ss2d'] * 4,
    ),
    head=dict(in_channels=640),
)
