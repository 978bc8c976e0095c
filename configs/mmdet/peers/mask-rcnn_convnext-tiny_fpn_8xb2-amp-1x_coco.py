_base_ = [
    '../_base_/models/mask-rcnn_convnext-tiny.py',
    '../_base_/mask-rcnn_8xb2-amp-1x_coco.py',
]
