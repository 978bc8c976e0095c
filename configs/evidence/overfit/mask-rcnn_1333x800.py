_base_ = './mask-rcnn.py'

# At 800x480 no anchor belongs to 89 of the 699 objects, at this size to 35.
larger = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    larger,
    _base_.packed,
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=train_pipeline))
test_dataloader = val_dataloader

epochs = 60
train_cfg = dict(max_epochs=epochs, val_interval=30)
param_scheduler = [
    _base_.warm_up_and_cosine[0],
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(checkpoint=dict(interval=epochs))
