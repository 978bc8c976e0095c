_base_ = '../evmamba-base_16xb64-amp-300e_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True, type='VMamba', arch='tiny', drop_path_rate=0.1
    ),
    head=dict(in_channels=768),
)
