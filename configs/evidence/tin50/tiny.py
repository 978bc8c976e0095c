_base_ = '../_base_/tin50.py'
