_base_ = [
    '../_base_/models/mask-rcnn_vmamba-tiny.py',
    '../_base_/mask-rcnn_8xb2-amp-ms-crop-3x_coco.py',
]
