_base_ = [
    './_base_/models/retinanet-std_evmamba-small.py',
    './_base_/retinanet_8xb2-1x_coco.py',
]
