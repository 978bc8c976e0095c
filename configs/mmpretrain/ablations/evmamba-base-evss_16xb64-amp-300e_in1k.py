_base_ = '../evmamba-base_16xb64-amp-300e_in1k.py'

# Tables 5 and 8: ES2D with the fusion in every stage.
model = dict(backbone=dict(block_types=['evss'] * 4))
