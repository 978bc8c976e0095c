_base_ = '../evmamba-base_16xb64-amp-300e_in1k.py'

# Table 5, ES2D alone, at the depths of base. The paper counts two blocks
# more: evmamba-base-es2d-deep.
model = dict(backbone=dict(block_types=['es2d'] * 4))
