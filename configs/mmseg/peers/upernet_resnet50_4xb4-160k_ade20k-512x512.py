_base_ = [
    'mmseg::_base_/models/upernet_r50.py',
    '../_base_/upernet_4xb4-160k_ade20k-512x512.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
