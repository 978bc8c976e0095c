_base_ = [
    '../_base_/models/mask-rcnn_resnet18.py',
    '../_base_/mask-rcnn_8xb2-amp-ms-crop-3x_coco.py',
]
