_base_ = '../evmamba-small_16xb128-amp-300e_in1k.py'

# mmpretrain has RegNetX alone; this one needs `pip install timm`.
model = dict(
    backbone=dict(
        _delete_=True, type='TIMMBackbone', model_name='regnety_016'
    ),
    head=dict(in_channels=888),
)
