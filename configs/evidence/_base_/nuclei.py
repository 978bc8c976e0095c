_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/default_runtime.py',
    './finetune.py',
]

# data/nuclei/{images,train.json,val.json}
data_root = 'data/nuclei/'
epochs, size = 8, (512, 512)
metainfo = dict(classes=('nucleus',), palette=[(255, 225, 25)])

model = dict(
    data_preprocessor=dict(
        batch_augments=[
            dict(type='BatchFixedSizePad', size=size, pad_mask=True)
        ]
    ),
    neck=dict(norm_cfg=dict(type='BN')),
    rpn_head=dict(
        # Nuclei are 16 to 64 pixels wide at this size.
        anchor_generator=dict(type='CachedAnchorGenerator', scales=[4])
    ),
    roi_head=dict(
        bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)
    ),
    train_cfg=dict(
        rpn=dict(assigner=dict(type='VectorizedMaxIoUAssigner')),
        rcnn=dict(assigner=dict(type='VectorizedMaxIoUAssigner')),
    ),
    # An image holds up to some 375 nuclei.
    test_cfg=dict(rcnn=dict(max_per_img=400)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
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
    num_workers=4,
    persistent_workers=True,
    dataset=images('train.json', train_pipeline),
)
val_dataloader = dict(batch_size=4, dataset=images('val.json', test_pipeline))
test_dataloader = val_dataloader
# mAP counts 100 detections an image at most, mAP_50 and mAP_75 all.
val_evaluator = dict(
    ann_file=data_root + 'val.json', proposal_nums=(100, 300, 1000)
)
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=1e-3))
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
    logger=dict(interval=33),
    checkpoint=dict(type='AtomicCheckpointHook', interval=epochs),
)
visualizer = dict(
    _delete_=True,
    type='DetLocalVisualizer',
    vis_backends=[dict(type='LocalVisBackend')],
    name='visualizer',
)
