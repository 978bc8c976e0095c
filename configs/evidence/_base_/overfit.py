# Learning 80 photographs by heart: data/coco_tiny/{train2017,annotations}.
epochs = 100
image_size = dict(type='Resize', scale=(800, 480), keep_ratio=True)
packed = dict(
    type='PackDetInputs',
    meta_keys=(
        *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
)
learned_images = dict(
    data_root='data/coco_tiny/',
    ann_file='annotations/instances_train2017.json',
    data_prefix=dict(img='train2017/'),
)
learned_boxes = 'data/coco_tiny/annotations/instances_train2017.json'
by_heart = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.0),
    clip_grad=dict(max_norm=5.0),
    constructor='GroupedOptimWrapperConstructor',
)
warm_up_and_cosine = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
