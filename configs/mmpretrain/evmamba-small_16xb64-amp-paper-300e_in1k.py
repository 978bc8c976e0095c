_base_ = './_base_/evmamba_amp-paper-300e_in1k.py'

model = dict(backbone=dict(arch='small'), head=dict(in_channels=512))
