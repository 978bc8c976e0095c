# CUDA graphs for batches of few sizes: at 800x1333 most batches of COCO have
# one of them already; the others get the next larger one. For a model's
# `data_preprocessor`; `batch_augments=None` switches it off.
few_sizes = dict(
    non_blocking=True,
    batch_augments=[
        dict(
            type='BatchCanvasPad',
            canvases=[
                (800, 1088),
                (800, 1216),
                (800, 1344),
                (1088, 800),
                (1216, 800),
                (1344, 800),
            ],
        )
    ],
)
# `custom_hooks=[]` switches the graphs off.
custom_hooks = [
    dict(
        type='CUDAGraphHook',
        module=['backbone', 'neck', 'rpn_head'],
        shapes=6,
        strict=False,
    )
]
