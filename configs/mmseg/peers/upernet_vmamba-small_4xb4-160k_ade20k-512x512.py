_base_ = [
    '../_base_/models/upernet_vmamba-small.py',
    '../_base_/upernet_4xb4-160k_ade20k-512x512.py',
]

model = dict(data_preprocessor=dict(size=(512, 512)))
