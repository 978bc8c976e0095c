_base_ = [
    './_base_/models/mask-rcnn-std_evmamba-tiny.py',
    './_base_/mask-rcnn_8xb2-amp-1x_coco.py',
    './_base_/graphs_mask-rcnn-1x.py',
]

model = dict(data_preprocessor=_base_.few_sizes)
