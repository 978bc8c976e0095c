_base_ = '../tin50/tiny.py'

compile = True
custom_hooks = []
