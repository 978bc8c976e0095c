_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='EfficientVMamba',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.2,
        # Two images a GPU are too few to estimate statistics anew.
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/evmamba-tiny_in1k.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[48, 96, 192, 384]),
    # mmdet's own, without loops and waits for the GPU.
    rpn_head=dict(anchor_generator=dict(type='CachedAnchorGenerator')),
    train_cfg=dict(
        rpn=dict(assigner=dict(type='VectorizedMaxIoUAssigner')),
        rcnn=dict(assigner=dict(type='VectorizedMaxIoUAssigner')),
    ),
)
