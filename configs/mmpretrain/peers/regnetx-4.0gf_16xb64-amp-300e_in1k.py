_base_ = '../evmamba-base_16xb64-amp-300e_in1k.py'

model = dict(
    backbone=dict(_delete_=True, type='RegNet', arch='regnetx_4.0gf'),
    head=dict(in_channels=1360),
)
