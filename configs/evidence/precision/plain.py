_base_ = '../tin50/tiny.py'

# The layers, without the fused kernels and without CUDA graphs.
model = dict(backbone=dict(fused=False))
custom_hooks = []
