_base_ = './_base_/evmamba_amp-paper-300e_in1k.py'

model = dict(backbone=dict(arch='tiny'), head=dict(in_channels=384))
