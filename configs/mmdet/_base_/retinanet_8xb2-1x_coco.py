_base_ = [
    './runtime.py',
    'mmdet::_base_/datasets/coco_detection.py',
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

# PVT's protocol decays every parameter, norms and biases too, and so weakly
# that an exemption would change nothing.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4
    ),
    clip_grad=None,
    constructor='GroupedOptimWrapperConstructor',
)
