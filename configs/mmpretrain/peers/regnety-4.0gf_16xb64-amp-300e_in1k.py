_base_ = '../evmamba-base_16xb64-amp-300e_in1k.py'

# mmpretrain has RegNetX alone; this one needs `pip install timm`.
model = dict(
    backbone=dict(
        _delete_=True, type='TIMMBackbone', model_name='regnety_040'
    ),
    head=dict(in_channels=1088),
)
