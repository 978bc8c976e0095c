_base_ = '../tin50/tiny.py'

# The fused kernels, without CUDA graphs.
custom_hooks = []
