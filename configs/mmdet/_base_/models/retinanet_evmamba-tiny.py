_base_ = './retinanet-std_evmamba-tiny.py'

# The narrow pyramid brings the detector to the paper's 13 M.
model = dict(
    neck=dict(out_channels=128),
    bbox_head=dict(in_channels=128),
)
