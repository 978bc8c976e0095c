# What the three tasks share. Two of them override the learning rate, which was
# chosen on the rows of ResNet-18 alone.
custom_imports = dict(imports=['evmamba_mm'], allow_failed_imports=False)

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(
        type='AdamW', lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05
    ),
    paramwise_cfg=dict(
        norm_decay_mult=0.0, custom_keys={'.Ds': dict(decay_mult=0.0)}
    ),
    clip_grad=dict(max_norm=5.0),
    constructor='GroupedOptimWrapperConstructor',
)
# All images of a task come in one size.
custom_hooks = [dict(type='CUDAGraphHook', strict=False)]
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=8)
