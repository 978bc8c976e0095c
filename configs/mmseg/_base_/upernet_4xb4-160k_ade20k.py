_base_ = [
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_160k.py',
]
custom_imports = dict(imports=['evmamba_mm'], allow_failed_imports=False)

# The heads have SyncBN; this extends it to the backbone's BatchNorm.
sync_bn = 'torch'

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01
    ),
    # Norms are found by class: BatchNorm has no 'norm' in its name here.
    # D is a gain like theirs; A_logs and dt are decayed as in pretraining.
    paramwise_cfg=dict(
        norm_decay_mult=0.0, custom_keys={'.Ds': dict(decay_mult=0.0)}
    ),
    clip_grad=None,
    constructor='GroupedOptimWrapperConstructor',
)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500
    ),
    dict(
        type='PolyLR',
        eta_min=0.0,
        power=1.0,
        begin=1500,
        end=160000,
        by_epoch=False,
    ),
]
# 4 GPUs x 4 images
auto_scale_lr = dict(enable=False, base_batch_size=16)

default_hooks = dict(
    runtime_info=dict(type='DeferredRuntimeInfoHook'),
    checkpoint=dict(
        type='AtomicCheckpointHook', max_keep_ckpts=3, save_best='mIoU'
    ),
    exact_resume=dict(type='ExactResumeHook'),
    signals=dict(type='SignalHook'),
)
custom_hooks = [dict(type='CUDAGraphHook', strict=False)]
# Without _delete_ a key of the base would reach the visualizer as an argument.
visualizer = dict(
    _delete_=True,
    type='SegLocalVisualizer',
    vis_backends=[dict(type='LocalVisBackend')],
    name='visualizer',
)
