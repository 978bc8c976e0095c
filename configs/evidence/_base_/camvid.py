_base_ = [
    'mmseg::_base_/models/upernet_r50.py',
    'mmseg::_base_/default_runtime.py',
    './finetune.py',
]

# data/camvid/{images,annotations}/{train,val}: streets at 480x360.
data_root = 'data/camvid/'
iterations, size, crop = 1000, (480, 360), (320, 320)
names = (
    *('sky', 'building', 'pole', 'road', 'pavement', 'tree'),
    *('sign_symbol', 'fence', 'car', 'pedestrian', 'bicyclist'),
)
colours = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128)),
    *((60, 40, 222), (128, 128, 0), (192, 128, 128), (64, 64, 128)),
    *((64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
norm_cfg = dict(type='BN', requires_grad=True)

model = dict(
    data_preprocessor=dict(size=crop),
    pretrained=None,
    decode_head=dict(num_classes=len(names), norm_cfg=norm_cfg),
    auxiliary_head=dict(num_classes=len(names), norm_cfg=norm_cfg),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize',
        scale=size,
        ratio_range=(0.75, 2.0),
        keep_ratio=True,
    ),
    dict(type='RandomCrop', crop_size=crop, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale_factor=ratio, keep_ratio=True)
                for ratio in (0.75, 1.0, 1.25, 1.5)
            ],
            [
                dict(type='RandomFlip', prob=0.0, direction='horizontal'),
                dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            ],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]


def images(part, pipeline):
    return dict(
        type='BaseSegDataset',
        data_root=data_root,
        metainfo=dict(classes=names, palette=colours),
        data_prefix=dict(
            img_path=f'images/{part}', seg_map_path=f'annotations/{part}'
        ),
        pipeline=pipeline,
    )


train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=images('train', train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=images('val', test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=100),
    dict(
        type='PolyLR',
        power=0.9,
        eta_min=0.0,
        begin=100,
        end=iterations,
        by_epoch=False,
    ),
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='AtomicCheckpointHook', interval=iterations, by_epoch=False
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
visualizer = dict(
    _delete_=True,
    type='SegLocalVisualizer',
    vis_backends=[dict(type='LocalVisBackend')],
    name='visualizer',
)
