_base_ = 'mmdet::_base_/default_runtime.py'
custom_imports = dict(imports=['evmamba_mm'], allow_failed_imports=False)

default_hooks = dict(
    runtime_info=dict(type='DeferredRuntimeInfoHook'),
    checkpoint=dict(type='AtomicCheckpointHook'),
    exact_resume=dict(type='ExactResumeHook'),
    signals=dict(type='SignalHook'),
)

# Without _delete_ a key of the base would reach the visualizer as an argument.
visualizer = dict(
    _delete_=True,
    type='DetLocalVisualizer',
    vis_backends=[dict(type='LocalVisBackend')],
    name='visualizer',
)
