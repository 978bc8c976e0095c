_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/default_runtime.py',
    './finetune.py',
]

# data/bccd/{images,train.json,test.json}: blood cells at 640x480.
data_root = 'data/bccd/'
epochs = 24
metainfo = dict(
    classes=('RBC', 'WBC', 'Platelets'),
    palette=[(230, 25, 75), (0, 130, 200), (255, 225, 25)],
)

model = dict(
    neck=dict(norm_cfg=dict(type='BN')),
    bbox_head=dict(
        num_classes=3, anchor_generator=dict(type='CachedAnchorGenerator')
    ),
    train_cfg=dict(assigner=dict(type='VectorizedMaxIoUAssigner')),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # Keeps the size, and notes the factor that the head asks for.
    dict(type='Resize', scale=(640, 480), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=(
            *('img_id', 'img_path', 'ori_shape', 'img_shape'),
            'scale_factor',
        ),
    ),
]


def images(ann_file, pipeline):
    return dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file=ann_file,
        data_prefix=dict(img='images/'),
        pipeline=pipeline,
    )


train_dataloader = dict(
    batch_size=8,
    batch_sampler=None,
    drop_last=True,
    persistent_workers=False,
    dataset=images('train.json', train_pipeline),
)
# The last weights are measured on the test images, which choose nothing.
val_dataloader = dict(batch_size=4, dataset=images('test.json', test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'test.json')
test_evaluator = val_evaluator

train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=epochs
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(type='AtomicCheckpointHook', interval=epochs),
)
visualizer = dict(
    _delete_=True,
    type='DetLocalVisualizer',
    vis_backends=[dict(type='LocalVisBackend')],
    name='visualizer',
)
