_base_ = '../_base_/tin50.py'

# Needs `pip install timm`.
model = dict(
    backbone=dict(
        _delete_=True, type='TIMMBackbone', model_name='regnety_008'
    ),
    head=dict(in_channels=768),
)
