_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/mask-rcnn_8xb2-amp-1x_coco.py',
]
