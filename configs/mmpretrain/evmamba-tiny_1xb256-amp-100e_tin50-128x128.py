_base_ = './_base_/evmamba_amp-300e_in1k.py'

# Every fourth class of Tiny-ImageNet, 64x64 pixels, as folders of classes:
# data/tin50/{train,val}/CLASS/*. For another data set change these.
data_root = 'data/tin50'
classes, epochs = 50, 100
stored_size, size = (64, 64), (128, 128)

model = dict(
    backbone=dict(arch='tiny'),
    head=dict(in_channels=384, num_classes=classes),
)


def images(folder, side):
    """A folder of class folders, every image resized to one size."""
    return dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix=folder,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                type='Resize',
                scale=side,
                backend='pillow',
                interpolation='bicubic',
            ),
            dict(type='PackInputs'),
        ],
    )


def cached(dataset):
    return dict(_delete_=True, type='CachedDataset', dataset=dataset)


# Images lie where the model is: no worker and no copy comes between.
in_memory = dict(
    batch_size=256,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    collate_fn=dict(type='whole_batch'),
)
train_dataloader = dict(
    dataset=cached(images('train', stored_size)), **in_memory
)
val_dataloader = dict(dataset=cached(images('val', size)), **in_memory)
test_dataloader = dict(dataset=dict(_delete_=True, **images('val', size)))
data_preprocessor = dict(
    num_classes=classes,
    image_augments=[
        dict(
            type='BatchRandomResizedCrop',
            scale=size,
            crop_ratio_range=(0.25, 1.0),
        ),
        *_base_.data_preprocessor.image_augments,
    ],
)

optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=5,
        end=epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=epochs, val_interval=5)
# 1 GPU x 256 images
auto_scale_lr = dict(base_batch_size=256)
# A short run is too short for EMA at 0.9999.
custom_hooks = [dict(type='CUDAGraphHook', strict=False)]
