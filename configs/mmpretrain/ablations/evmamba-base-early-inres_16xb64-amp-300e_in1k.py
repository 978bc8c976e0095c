_base_ = '../evmamba-base_16xb64-amp-300e_in1k.py'

# "Previous" of Table 6, which has it for tiny alone.
model = dict(
    backbone=dict(block_types=['inverted_residual'] * 2 + ['evss'] * 2),
)
