_base_ = [
    './_base_/models/upernet-std_evmamba-small.py',
    './_base_/upernet_4xb4-160k_ade20k-640x640.py',
]

model = dict(data_preprocessor=dict(size=(640, 640)))
