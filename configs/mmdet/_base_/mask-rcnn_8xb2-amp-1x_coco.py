_base_ = [
    './runtime.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
]

train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    pin_memory=True,
    # Workers get the seed of each epoch, so that it can be repeated.
    persistent_workers=False,
)
# 8 GPUs x 2 images
auto_scale_lr = dict(enable=False, base_batch_size=16)

optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    optimizer=dict(
        type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05
    ),
    # Norms are found by class: BatchNorm has no 'norm' in its name here.
    # D is a gain like theirs; A_logs and dt are decayed as in pretraining.
    paramwise_cfg=dict(
        norm_decay_mult=0.0, custom_keys={'.Ds': dict(decay_mult=0.0)}
    ),
    clip_grad=None,
    constructor='GroupedOptimWrapperConstructor',
)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000
    ),
    dict(
        type='MultiStepLR',
        begin=0,
        end=12,
        by_epoch=True,
        milestones=[8, 11],
        gamma=0.1,
    ),
]
