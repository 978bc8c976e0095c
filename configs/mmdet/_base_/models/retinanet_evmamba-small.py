_base_ = './retinanet-std_evmamba-small.py'

# The narrow pyramid brings the detector to the paper's 19 M.
model = dict(
    neck=dict(out_channels=192),
    bbox_head=dict(in_channels=192),
)
