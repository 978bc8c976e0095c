_base_ = [
    '../_base_/models/mask-rcnn_swin-tiny.py',
    '../_base_/mask-rcnn_8xb2-amp-1x_coco.py',
]

# Exempt in Swin's own recipe.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'.relative_position_bias_table': dict(decay_mult=0.0)}
    )
)
