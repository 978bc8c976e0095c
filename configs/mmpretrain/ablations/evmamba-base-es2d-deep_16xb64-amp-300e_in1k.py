_base_ = '../evmamba-base_16xb64-amp-300e_in1k.py'

# Table 5, ES2D alone: 11 blocks in the third stage, not 9, give the
# paper's Params and FLOPs.
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            channels=[96, 192, 384, 768],
            depths=[2, 2, 11, 2],
        ),
        block_types=['es2d'] * 4,
    ),
)
