_base_ = './upernet-std_evmamba-small.py'

# Three quarters of the standard width: so are the paper's 29 M and 505 G.
model = dict(decode_head=dict(channels=384))
