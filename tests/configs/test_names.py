"""What a config's name says is what the config holds."""

import pytest

from evmamba_mm import ARCHS

from .leaves import LEAVES, ROOT, load, read_name

# The widths of the heads: in the paper's tables, and as the hosts have them.
# The paper's detectors are told by FPN, its segmentors by the decode head.
PAPER_WIDTHS = {
    ('retinanet', 'tiny'): 128,
    ('retinanet', 'small'): 192,
    ('retinanet', 'base'): 256,
    ('mask-rcnn', 'tiny'): 128,
    ('mask-rcnn', 'small'): 256,
    ('mask-rcnn', 'base'): 256,
    ('upernet', 'tiny'): 256,
    ('upernet', 'small'): 384,
    ('upernet', 'base'): 512,
}
STANDARD_WIDTHS = {
    'retinanet-std': 256,
    'mask-rcnn-std': 256,
    'upernet-std': 512,
}
DETECTORS = {'RetinaNet': 'retinanet', 'MaskRCNN': 'mask-rcnn'}
EPOCHS = {'1x': 12, '3x': 36, '100e': 100, '300e': 300}


def test_there_is_a_config_for_every_row_of_the_tables():
    rows = {(read_name(stem).method, read_name(stem).size) for stem in LEAVES}
    sizes = ('tiny', 'small', 'base')
    assert rows >= set(PAPER_WIDTHS) | {(None, size) for size in sizes}


def test_every_config_is_documented():
    text = (ROOT / 'docs' / 'configs.md').read_text()
    assert [stem for stem in LEAVES if f'{stem}.py' not in text] == []


def test_batch(leaf, config):
    name = read_name(leaf)
    assert config.train_dataloader.batch_size == name.images
    base_batch_size = config.auto_scale_lr.base_batch_size
    assert base_batch_size == name.gpus * name.images


def test_schedule(leaf, config):
    schedule = read_name(leaf).schedule
    if schedule in EPOCHS:
        assert config.train_cfg.max_epochs == EPOCHS[schedule]
    else:
        thousands = int(schedule.removesuffix('k'))
        assert config.train_cfg.max_iters == 1000 * thousands


def test_precision_comes_first_among_the_tricks(leaf, config):
    tricks = read_name(leaf).tricks
    mixed = config.optim_wrapper.type == 'AmpOptimWrapper'
    assert ('amp' in tricks[:1]) == mixed
    assert 'amp' not in tricks[1:]


def test_other_tricks(leaf, config):
    tricks = [t for t in read_name(leaf).tricks if t != 'amp']
    legal = {'mmpretrain': [[], ['paper']], 'mmdet': [[], ['ms', 'crop']]}
    assert tricks in legal.get(LEAVES[leaf].parent.name, [[]])
    if LEAVES[leaf].parent.name == 'mmdet':
        text = str(config.train_dataloader.dataset.pipeline)
        assert ('ms' in tricks) == ('RandomChoiceResize' in text)
        assert ('crop' in tricks) == ('RandomCrop' in text)
    if LEAVES[leaf].parent.name == 'mmpretrain':
        augments = [
            augment.type for augment in config.model.train_cfg.augments
        ]
        assert ('paper' in tricks) == (augments == ['Mixup'])


def test_dataset(leaf, config):
    types = {
        'in1k': 'ImageNet',
        'coco': 'CocoDataset',
        'ade20k': 'ADE20K',
        'tin50': 'CustomDataset',
    }
    expected = types[read_name(leaf).dataset]
    for part in ('train', 'val', 'test'):
        dataset = config[f'{part}_dataloader'].dataset
        dataset = dataset.get('dataset', dataset)
        assert dataset.type.startswith(expected)


def test_crop(leaf, config):
    crop = read_name(leaf).crop
    if LEAVES[leaf].parent.name != 'mmseg':
        augments = config.get('data_preprocessor', {}).get('image_augments')
        crops = [
            tuple(augment.scale)
            for augment in augments or ()
            if augment.type == 'BatchRandomResizedCrop'
        ]
        assert crops == ([] if crop is None else [crop])
        return
    pipeline = config.train_dataloader.dataset.pipeline
    (random_crop,) = (t for t in pipeline if t.type == 'RandomCrop')
    assert tuple(random_crop.crop_size) == crop
    assert tuple(config.model.data_preprocessor.size) == crop
    (resize,) = (t for t in config.test_pipeline if t.type == 'Resize')
    assert resize.scale == (4 * crop[0], crop[0])
    scales = [t.scale for t in config.tta_pipeline[1].transforms[0]]
    ratios = [scale[1] / crop[0] for scale in scales]
    assert ratios == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert all(scale[0] == 4 * scale[1] for scale in scales)


def test_size(leaf, config):
    size = read_name(leaf).size
    assert config.model.backbone.arch == size
    pretrained = load(leaf).model.backbone.get('init_cfg')
    if LEAVES[leaf].parent.name == 'mmpretrain':
        assert pretrained is None
    else:
        path = f'checkpoints/evmamba-{size}_in1k.pth'
        assert pretrained.checkpoint == path
        assert pretrained.prefix == 'backbone.'


def test_heads_take_the_channels_of_the_backbone(leaf, config):
    channels = ARCHS[read_name(leaf).size].channels
    model = config.model
    if model.type == 'ImageClassifier':
        assert model.head.in_channels == channels[-1]
    elif model.type == 'EncoderDecoder':
        head, auxiliary = model.decode_head, model.auxiliary_head
        assert tuple(head.in_channels) == channels
        assert tuple(head.in_index) == model.backbone.out_indices
        assert auxiliary.in_channels == channels[auxiliary.in_index]
    else:
        outputs = [channels[i] for i in model.backbone.out_indices]
        assert model.neck.in_channels == outputs


def head_widths(model):
    """The widths of a detector's heads, each over the standard one."""
    neck = model.neck.out_channels
    if model.type == 'RetinaNet':
        assert model.bbox_head.in_channels == neck
        assert model.bbox_head.feat_channels == 256
        return {neck / 256}
    heads = model.roi_head
    return {
        width / 256
        for width in (
            neck,
            model.rpn_head.in_channels,
            model.rpn_head.feat_channels,
            heads.bbox_roi_extractor.out_channels,
            heads.bbox_head.in_channels,
            heads.bbox_head.fc_out_channels / 4,
            heads.mask_roi_extractor.out_channels,
            heads.mask_head.in_channels,
            heads.mask_head.conv_out_channels,
        )
    }


def test_widths_of_the_heads(leaf, config):
    name, model = read_name(leaf), config.model
    if name.method is None:
        assert model.type == 'ImageClassifier'
        return
    width = STANDARD_WIDTHS.get(
        name.method, PAPER_WIDTHS.get((name.method, name.size))
    )
    method = name.method.removesuffix('-std')
    if method == 'upernet':
        assert (model.decode_head.type, name.neck) == ('UPerHead', None)
        assert model.decode_head.channels == width
        assert model.auxiliary_head.channels == 256
        return
    assert (DETECTORS[model.type], name.neck) == (method, 'fpn')
    assert model.neck.type == 'FPN'
    assert model.neck.num_outs == 5
    assert head_widths(model) == {width / 256}


@pytest.mark.parametrize(
    'stem',
    [
        'evmamba-tiny_16xb128-300e-amp_in1k',
        'mask_rcnn_evmamba-tiny_fpn_8xb2-1x_coco',
        'upernet_evmamba-tiny_160k_ade20k-512x512',
        'upernet_evmamba-tiny_4xb4-160k_ade20k-512',
        'retinanet_evmamba_fpn_8xb2-1x_coco',
    ],
)
def test_other_names_are_refused(stem):
    with pytest.raises(pytest.fail.Exception, match='grammar'):
        read_name(stem)
