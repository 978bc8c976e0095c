_base_ = './_base_/evmamba_amp-300e_in1k.py'

model = dict(backbone=dict(arch='base'), head=dict(in_channels=768))
train_dataloader = dict(batch_size=64)
# 16 GPUs x 64 images, at the learning rate of 2048: as the release.
auto_scale_lr = dict(base_batch_size=1024)
