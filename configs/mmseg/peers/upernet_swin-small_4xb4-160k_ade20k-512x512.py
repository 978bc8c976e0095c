_base_ = [
    'mmseg::_base_/models/upernet_swin.py',
    '../_base_/upernet_4xb4-160k_ade20k-512x512.py',
]

checkpoint = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/swin_small_patch4_window7_224_20220317-7ba6d6dd.pth'
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        depths=[2, 2, 18, 2],
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
# Exempt in Swin's own recipe.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'.relative_position_bias_table': dict(decay_mult=0.0)}
    )
)
