_base_ = '../evmamba-small_16xb128-amp-300e_in1k.py'

model = dict(
    backbone=dict(_delete_=True, type='RegNet', arch='regnetx_1.6gf'),
    head=dict(in_channels=912),
)
