_base_ = './upernet-std_evmamba-tiny.py'

# Half the standard width: so are the paper's 14 M and 230 G.
model = dict(decode_head=dict(channels=256))
