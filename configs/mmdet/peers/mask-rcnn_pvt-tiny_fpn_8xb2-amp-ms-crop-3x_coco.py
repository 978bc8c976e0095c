_base_ = [
    '../_base_/models/mask-rcnn_pvt-tiny.py',
    '../_base_/mask-rcnn_8xb2-amp-ms-crop-3x_coco.py',
]

# Exempt in Swin's protocol, which has them under another name.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.pos_embed': dict(decay_mult=0.0)})
)
