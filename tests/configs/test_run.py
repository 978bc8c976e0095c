"""One config of each head learns and predicts on small pictures."""

import math

import numpy as np
import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, TRANSFORMS
from mmengine.structures import InstanceData, PixelData

CLASSIFIER = 'evmamba-tiny_16xb128-amp-300e_in1k'
RETINANET = 'retinanet_evmamba-tiny_fpn_8xb2-1x_coco'
MASK_RCNN = 'mask-rcnn_evmamba-tiny_fpn_8xb2-amp-1x_coco'
MASK_RCNN_3X = 'mask-rcnn_evmamba-tiny_fpn_8xb2-amp-ms-crop-3x_coco'
UPERNET = 'upernet_evmamba-tiny_4xb4-160k_ade20k-512x512'


def run_with(*stems):
    return pytest.mark.parametrize('leaf', stems, indirect=True)


@pytest.fixture
def model(config):
    """The model with weights, on the CPU, for crops of 64 pixels."""
    torch.manual_seed(0)
    if config.model.type == 'EncoderDecoder':
        config.model.data_preprocessor.size = (64, 64)
        config.model.auxiliary_head.num_classes = 5
        config.model.decode_head.num_classes = 5
    if config.model.type == 'ImageClassifier':
        # As the runner does.
        config.model.data_preprocessor = config.data_preprocessor
    model = MODELS.build(config.model)
    model.init_weights()
    return revert_sync_batchnorm(model)


def picture():
    return torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)


def class_sample():
    from mmpretrain.structures import DataSample

    return DataSample().set_gt_label(7)


def box_sample():
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    masks = np.zeros((2, 64, 64), dtype=np.uint8)
    masks[0, 8:40, 8:48] = masks[1, 30:60, 20:62] = 1
    sample = DetDataSample(
        metainfo=dict(
            img_shape=(64, 64),
            ori_shape=(64, 64),
            scale_factor=(1.0, 1.0),
        )
    )
    boxes = [[8.0, 8.0, 48.0, 40.0], [20.0, 30.0, 62.0, 60.0]]
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes),
        labels=torch.tensor([3, 70]),
        masks=BitmapMasks(masks, 64, 64),
    )
    return sample


def pixel_sample():
    from mmseg.structures import SegDataSample

    sample = SegDataSample(
        metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64))
    )
    labels = torch.randint(0, 5, (1, 64, 64))
    sample.gt_sem_seg = PixelData(data=labels)
    return sample


SAMPLES = {
    'ImageClassifier': class_sample,
    'RetinaNet': box_sample,
    'MaskRCNN': box_sample,
    'EncoderDecoder': pixel_sample,
}


def batch(config, model, training):
    """Two pictures, through the model's own data preprocessor."""
    make_sample = SAMPLES[config.model.type]
    data = dict(
        inputs=[picture(), picture()],
        data_samples=[make_sample(), make_sample()],
    )
    return model.data_preprocessor(data, training)


def check_classes(result):
    assert result.pred_score.shape == (1000,)
    assert result.pred_score.sum().item() == pytest.approx(1, abs=1e-4)


def check_boxes(result):
    found = result.pred_instances
    assert found.bboxes.shape == (len(found.scores), 4)
    assert found.bboxes.isfinite().all()
    if 'masks' in found:
        assert found.masks.shape == (len(found.scores), 64, 64)


def check_pixels(result):
    assert result.seg_logits.data.shape == (5, 64, 64)
    assert result.seg_logits.data.isfinite().all()
    assert result.pred_sem_seg.data.shape == (1, 64, 64)


CHECKS = {
    'ImageClassifier': check_classes,
    'RetinaNet': check_boxes,
    'MaskRCNN': check_boxes,
    'EncoderDecoder': check_pixels,
}


@run_with(CLASSIFIER, RETINANET, MASK_RCNN, UPERNET)
def test_loss_reaches_every_parameter(config, model):
    model.train()
    data = batch(config, model, training=True)
    losses, _ = model.parse_losses(model(**data, mode='loss'))
    assert losses.isfinite()
    losses.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@run_with(CLASSIFIER, RETINANET, MASK_RCNN, UPERNET)
def test_prediction(config, model):
    model.eval()
    data = batch(config, model, training=False)
    with torch.no_grad():
        results = model(**data, mode='predict')
    assert len(results) == 2
    for result in results:
        CHECKS[config.model.type](result)


@pytest.fixture
def stored(config, tmp_path):
    """What a dataset says of one item: two files and what is in them."""
    import cv2

    rng = np.random.default_rng(0)
    image, labels = tmp_path / 'image.png', tmp_path / 'labels.png'
    pixels = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    cv2.imwrite(str(image), pixels)
    cv2.imwrite(str(labels), pixels[..., 0] % 151)
    square = [[10.0, 10.0, 90.0, 10.0, 90.0, 80.0, 10.0, 80.0]]
    return dict(
        img_path=str(image),
        img_id=0,
        gt_label=7,
        seg_map_path=str(labels),
        seg_fields=[],
        label_map=None,
        reduce_zero_label=True,
        height=96,
        width=128,
        instances=[
            dict(
                bbox=[10.0, 10.0, 90.0, 80.0],
                bbox_label=3,
                mask=square,
                ignore_flag=0,
            )
        ],
    )


# Enough for each of the random changes to come up.
DRAWS = {CLASSIFIER: 60, MASK_RCNN_3X: 8}


@run_with(CLASSIFIER, RETINANET, MASK_RCNN, MASK_RCNN_3X, UPERNET)
def test_training_pipeline(leaf, config, stored):
    np.random.seed(0)
    pipeline = TRANSFORMS.build(
        dict(
            type='Compose',
            transforms=config.train_dataloader.dataset.pipeline,
        )
    )
    for _ in range(DRAWS.get(leaf, 2)):
        item = pipeline({**stored})
        image = item['inputs']
        assert image.dtype == torch.uint8
        if leaf == CLASSIFIER:
            assert image.shape == (3, 224, 224)
        elif leaf == UPERNET:
            assert max(image.shape[1:]) <= 512
        else:
            assert 480 <= min(image.shape[1:]) <= 800
            assert max(image.shape[1:]) <= 1333


@run_with(CLASSIFIER)
def test_strength_of_the_augmentation(config):
    pipeline = config.image_pipeline
    (settings,) = (t for t in pipeline if t.type == 'RandAugment')
    assert (settings.magnitude_level, settings.magnitude_std) == (9, 0.5)
    settings.magnitude_std = 0
    strengths = {
        type(transform).__name__: transform.random_magnitude()
        for transform in TRANSFORMS.build(settings)
        if transform.magnitude_range is not None
    }
    # timm's formulas of '_RAND_TRANSFORMS' at level 9.
    assert math.ceil(strengths.pop('Posterize')) == int(9 / 10 * 4)
    enhancement = 9 / 10 * 1.8 + 0.1 - 1
    assert strengths == pytest.approx(
        {
            'Rotate': 9 / 10 * 30,
            'Solarize': 9 / 10 * 256,
            'SolarizeAdd': 9 / 10 * 110,
            'ColorTransform': enhancement,
            'Contrast': enhancement,
            'Brightness': enhancement,
            'Sharpness': enhancement,
            'Shear': 9 / 10 * 0.3,
            'Translate': 9 / 10 * 0.45,
        }
    )


@run_with(CLASSIFIER)
def test_batches_get_what_images_would(config):
    """Workers and the data preprocessor share what one pipeline says."""
    loaded, crop, flip, augment, erase, packed = config.image_pipeline
    load, pack = config.train_dataloader.dataset.pipeline
    assert (crop.backend, crop.interpolation) == ('pillow', 'bicubic')
    assert (load.type, load.scale) == ('LoadResizedCrop', crop.scale)
    assert pack == packed
    ours = config.data_preprocessor.image_augments
    assert [x.pop('type') for x in ours] == [
        'BatchRandomFlip',
        'BatchRandAugment',
        'BatchRandomErasing',
    ]
    flip.pop('direction')
    for stock, batch in zip((flip, augment, erase), ours, strict=True):
        stock.pop('type')
        assert stock == batch


@run_with(CLASSIFIER)
def test_the_pipeline_of_images_runs(config, stored):
    pipeline = TRANSFORMS.build(
        dict(type='Compose', transforms=config.image_pipeline)
    )
    assert pipeline(stored)['inputs'].shape == (3, 224, 224)


@run_with(CLASSIFIER, RETINANET, MASK_RCNN, UPERNET)
def test_test_pipeline(leaf, config, stored):
    pipeline = TRANSFORMS.build(
        dict(
            type='Compose', transforms=config.test_dataloader.dataset.pipeline
        )
    )
    height, width = pipeline(stored)['inputs'].shape[1:]
    expected = {
        CLASSIFIER: (224, 224),
        RETINANET: (800, 1067),
        MASK_RCNN: (800, 1067),
        UPERNET: (512, 683),
    }
    assert (height, width) == expected[leaf]


@run_with(UPERNET)
def test_multi_scale_pipeline(config, stored):
    pipeline = TRANSFORMS.build(
        dict(type='Compose', transforms=config.tta_pipeline)
    )
    images = pipeline(stored)['inputs']
    heights = sorted(image.shape[1] for image in images)
    edges = (256, 384, 512, 640, 768, 896)
    assert heights == [edge for edge in edges for _ in range(2)]
