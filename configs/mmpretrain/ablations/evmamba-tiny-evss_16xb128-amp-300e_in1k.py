_base_ = '../evmamba-tiny_16xb128-amp-300e_in1k.py'

# Tables 5, 6 and 8: ES2D with the fusion in every stage.
model = dict(backbone=dict(block_types=['evss'] * 4))
