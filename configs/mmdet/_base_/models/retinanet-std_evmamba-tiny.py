_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='EfficientVMamba',
        arch='tiny',
        # The pyramid starts at stride 8. An output that it skips would have a
        # norm without a gradient, on which distributed training stops.
        out_indices=(1, 2, 3),
        drop_path_rate=0.2,
        # Two images a GPU are too few to estimate statistics anew.
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/evmamba-tiny_in1k.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[96, 192, 384], start_level=0),
    # mmdet's own, without loops and waits for the GPU.
    bbox_head=dict(anchor_generator=dict(type='CachedAnchorGenerator')),
    train_cfg=dict(assigner=dict(type='VectorizedMaxIoUAssigner')),
)
