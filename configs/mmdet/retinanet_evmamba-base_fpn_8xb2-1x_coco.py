_base_ = [
    './_base_/models/retinanet_evmamba-base.py',
    './_base_/retinanet_8xb2-1x_coco.py',
    './_base_/graphs_retinanet-1x.py',
]

model = dict(data_preprocessor=_base_.few_sizes)
