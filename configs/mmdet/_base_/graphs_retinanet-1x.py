_base_ = './graphs_mask-rcnn-1x.py'

custom_hooks = [
    dict(
        type='CUDAGraphHook',
        module=['backbone', 'neck', 'bbox_head'],
        shapes=6,
        strict=False,
    )
]
