_base_ = '../_base_/nuclei.py'

# The backbone's own `init_cfg` knows no prefix of keys.
load_from = 'work_dirs/evidence/tin50/pvtv2-b0-2/epoch_15.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdet.PyramidVisionTransformerV2',
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
