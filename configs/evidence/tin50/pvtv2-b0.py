_base_ = '../_base_/tin50.py'

# Needs `pip install timm`.
model = dict(
    backbone=dict(
        _delete_=True,
        type='TIMMBackbone',
        model_name='pvt_v2_b0',
        drop_path_rate=0.1,
    ),
    head=dict(in_channels=256),
)
