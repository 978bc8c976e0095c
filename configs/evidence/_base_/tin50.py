_base_ = '../../mmpretrain/evmamba-tiny_1xb256-amp-100e_tin50-128x128.py'

# One recipe for all rows, chosen on the row of ResNet-18 alone. With so few
# epochs mixup and CutMix make it worse; RandAugment and erasing are out too.
epochs = 15

model = dict(train_cfg=dict(_delete_=True))
data_preprocessor = dict(
    image_augments=[
        dict(
            type='BatchRandomResizedCrop',
            scale=(128, 128),
            crop_ratio_range=(0.35, 1.0),
        ),
        dict(type='BatchRandomFlip', prob=0.5),
    ],
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=2,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=2,
        end=epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=epochs, val_interval=5)
# The last weights are what is measured, not the best ones.
default_hooks = dict(
    checkpoint=dict(interval=epochs, max_keep_ckpts=1, save_best=None),
    logger=dict(interval=49),
)
