_base_ = '../evmamba-tiny_16xb128-amp-300e_in1k.py'

model = dict(
    backbone=dict(_delete_=True, type='RegNet', arch='regnetx_800mf'),
    head=dict(in_channels=672),
)
