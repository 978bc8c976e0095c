_base_ = '../evmamba-tiny_16xb128-amp-300e_in1k.py'

# mmpretrain has no PVTv2; this one needs `pip install timm`.
model = dict(
    backbone=dict(
        _delete_=True,
        type='TIMMBackbone',
        model_name='pvt_v2_b0',
        drop_path_rate=0.1,
    ),
    head=dict(in_channels=256),
)
