_base_ = '../evmamba-base_16xb64-amp-300e_in1k.py'

model = dict(
    backbone=dict(_delete_=True, type='Vim', arch='small', drop_path_rate=0.1),
    neck=None,
    head=dict(in_channels=384),
)

# Exempt in Vim's own recipe.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            '.cls_token': dict(decay_mult=0.0),
            '.pos_embed': dict(decay_mult=0.0),
        }
    )
)
