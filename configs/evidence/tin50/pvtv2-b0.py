_base_ = '../_base_/tin50.py'

# Needs `pip install mmdet`.
custom_imports = dict(imports=['evmamba_mm', 'mmdet.models'])
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdet.PyramidVisionTransformerV2',
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
        out_indices=(3,),
        drop_path_rate=0.1,
    ),
    head=dict(in_channels=256),
)
