_base_ = '../tin50/tiny.py'

optim_wrapper = dict(type='OptimWrapper')
