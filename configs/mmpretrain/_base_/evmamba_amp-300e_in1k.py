_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['evmamba_mm'], allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='EfficientVMamba', arch='tiny', out_indices=-1, drop_path_rate=0.1
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'
        ),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    ),
    # One of the two a batch, each as likely as the other.
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.2),
            dict(type='CutMix', alpha=1.0),
        ]
    ),
)

# BGR, as the images are loaded.
pixel_mean = [103.53, 116.28, 123.675]
pixel_std = [57.375, 57.12, 58.395]
# timm's 'rand-m9-mstd0.5'. The preset 'timm_increasing' is the '-inc1' of it,
# in which a higher level is always a stronger change. A range of posterize
# starts at -1 because bits are rounded up here and down in timm.
enhance = dict(magnitude_range=(-0.9, 0.9), random_negative_prob=0.0)
policies = [
    dict(type='AutoContrast'),
    dict(type='Equalize'),
    dict(type='Invert'),
    dict(type='Rotate', magnitude_range=(0, 30)),
    dict(type='Posterize', magnitude_range=(-1, 3)),
    dict(type='Solarize', magnitude_range=(0, 256)),
    dict(type='SolarizeAdd', magnitude_range=(0, 110)),
    dict(type='ColorTransform', **enhance),
    dict(type='Contrast', **enhance),
    dict(type='Brightness', **enhance),
    dict(type='Sharpness', **enhance),
    dict(type='Shear', magnitude_range=(0, 0.3), direction='horizontal'),
    dict(type='Shear', magnitude_range=(0, 0.3), direction='vertical'),
    dict(type='Translate', magnitude_range=(0, 0.45), direction='horizontal'),
    dict(type='Translate', magnitude_range=(0, 0.45), direction='vertical'),
]
rand_augment = dict(
    policies=policies,
    num_policies=2,
    total_level=10,
    magnitude_level=9,
    magnitude_std=0.5,
    hparams=dict(
        pad_val=[round(value) for value in pixel_mean],
        interpolation='bicubic',
    ),
)
erasing = dict(
    erase_prob=0.25,
    mode='rand',
    min_area_ratio=0.02,
    max_area_ratio=1 / 3,
    fill_color=pixel_mean,
    fill_std=pixel_std,
)
# Workers load crops; the rest is done for whole batches, where the model is.
train_pipeline = [
    dict(type='LoadResizedCrop', scale=224, as_tensor=True),
    dict(type='PackInputs'),
]
data_preprocessor = dict(
    type='BatchDataPreprocessor',
    image_augments=[
        dict(type='BatchRandomFlip', prob=0.5),
        dict(type='BatchRandAugment', **rand_augment),
        dict(type='BatchRandomErasing', **erasing),
    ],
)
# The same recipe by mmpretrain's transforms, an image at a time. It needs
# image_augments=None above, and the loader's collate_fn 'pseudo_collate'.
image_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop',
        scale=224,
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandAugment', **rand_augment),
    dict(type='RandomErasing', **erasing),
    dict(type='PackInputs'),
]
# The host's test pipeline is the recipe's: short edge to 256, bicubic, then
# the centre 224.
train_dataloader = dict(
    batch_size=128,
    drop_last=True,
    pin_memory=True,
    collate_fn=dict(type='stack_samples'),
    # Workers get the seed of each epoch, so that it can be repeated.
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline),
)

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(
        type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.04
    ),
    # The release exempts what is one-dimensional or named '.bias', nothing
    # else: A_logs, x_proj_weight, dt_projs_weight and dt_projs_bias decay.
    paramwise_cfg=dict(bias_decay_mult=0.0, flat_decay_mult=0.0),
    constructor='GroupedOptimWrapperConstructor',
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    # From 1e-7.
    dict(
        type='LinearLR',
        start_factor=1e-7 / 2e-3,
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
# On several GPUs; a captured backward has all gradients at once.
model_wrapper_cfg = dict(type='FlatDistributedDataParallel')
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
# 16 GPUs x 128 images
auto_scale_lr = dict(base_batch_size=2048)

# A decay of 0.9999 is a momentum of 1e-4. The statistics of BatchNorm are
# averaged with the weights they belong to. Both models are evaluated: early
# in training the average lags far behind.
custom_hooks = [
    dict(type='CUDAGraphHook', strict=False),
    dict(
        type='EMAHook',
        ema_type='ForeachExponentialMovingAverage',
        momentum=1e-4,
        update_buffers=True,
        evaluate_on_ema=True,
        evaluate_on_origin=True,
        priority='ABOVE_NORMAL',
    ),
]
default_hooks = dict(
    runtime_info=dict(type='DeferredRuntimeInfoHook'),
    data_wait=dict(type='DataWaitHook'),
    checkpoint=dict(
        type='AtomicCheckpointHook',
        max_keep_ckpts=2,
        save_best='accuracy/top1',
    ),
    exact_resume=dict(type='ExactResumeHook'),
    signals=dict(type='SignalHook'),
)
# Without _delete_ a key of the base would reach the visualizer as an argument.
visualizer = dict(
    _delete_=True,
    type='UniversalVisualizer',
    vis_backends=[dict(type='LocalVisBackend')],
)
