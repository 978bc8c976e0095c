_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/retinanet_8xb2-1x_coco.py',
]
