_base_ = [
    '../../mmdet/mask-rcnn-std_evmamba-tiny_fpn_8xb2-amp-1x_coco.py',
    '../_base_/overfit.py',
]

model = dict(
    data_preprocessor=dict(batch_augments=None),
    backbone=dict(
        drop_path_rate=0.0,
        norm_eval=False,
        init_cfg=dict(
            checkpoint='work_dirs/evidence/tin50/tiny-2/epoch_15.pth'
        ),
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    _base_.image_size,
    _base_.packed,
]
learned = dict(pipeline=train_pipeline, **_base_.learned_images)
train_dataloader = dict(batch_size=4, dataset=learned)
val_dataloader = dict(dataset=learned)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=_base_.learned_boxes)
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=_base_.epochs, val_interval=25)
optim_wrapper = _base_.by_heart
param_scheduler = _base_.warm_up_and_cosine
custom_hooks = []
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(interval=_base_.epochs)
)
