_base_ = [
    'mmseg::_base_/models/upernet_vit-b16_ln_mln.py',
    '../_base_/upernet_4xb4-160k_ade20k-512x512.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    # Made by the toolbox's vit2mmseg.py.
    pretrained='pretrain/deit_base_patch16_224-b5f2ef4d.pth',
    backbone=dict(drop_path_rate=0.2),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
# Exempt in DeiT's own recipe.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            '.cls_token': dict(decay_mult=0.0),
            '.pos_embed': dict(decay_mult=0.0),
        }
    )
)
