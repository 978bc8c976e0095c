_base_ = '../evmamba-base_16xb64-amp-300e_in1k.py'

# Table 8: inverted residuals in every stage.
model = dict(backbone=dict(block_types=['inverted_residual'] * 4))
