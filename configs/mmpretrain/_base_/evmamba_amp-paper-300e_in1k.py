_base_ = './evmamba_amp-300e_in1k.py'

# What the paper's text states; where it is silent, the release's value stays.
model = dict(train_cfg=dict(augments=[dict(type='Mixup', alpha=0.2)]))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    # From 1e-7.
    dict(
        type='LinearLR',
        start_factor=1e-7 / 1e-3,
        by_epoch=True,
        begin=0,
        end=20,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]
# 16 GPUs x 64 images
auto_scale_lr = dict(base_batch_size=1024)
