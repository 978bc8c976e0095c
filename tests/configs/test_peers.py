"""The paper's other rows: each is built by its host and trained like ours."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch._subclasses.fake_tensor import FakeTensorMode

from .peer_leaves import (
    PEERS,
    load,
    meta_device,
    needed_packages,
    read_name,
    recipe_of,
    without_weights,
)
from .test_run import batch

# Parameters in millions, and what the paper prints, which is not always the
# nearest. RetinaNet's column leaves out what is frozen from the start, Table 2
# the last layer of VMamba-T and PVTv2-B0.
PARAMETERS = {
    'regnety-800mf': ('6.26', '6'),
    'pvtv2-b0': ('3.67', '3'),
    'mobilevit-xsmall': ('2.32', '2'),
    'regnety-1.6gf': ('11.20', '11'),
    'deit-tiny': ('5.72', '6'),
    'mobilevit-small': ('5.58', '6'),
    'vim-tiny': ('7.15', '7'),
    'regnety-4.0gf': ('20.65', '21'),
    'deit-small': ('22.05', '22'),
    'swin-tiny': ('28.29', '29'),
    'vim-small': ('25.80', '26'),
    'vmamba-tiny': ('22.89', '22'),
    'vmamba-small': ('44.42', None),
    'regnetx-800mf': ('7.26', None),
    'regnetx-1.6gf': ('9.19', None),
    'regnetx-4.0gf': ('22.12', None),
    'retinanet resnet18': ('21.25', '21.3'),
    'retinanet pvt-tiny': ('22.96', '23.0'),
    'retinanet pvtv2-b0': ('12.95', '13.0'),
    'retinanet resnet50': ('37.74', '37.7'),
    'retinanet pvt-small': ('34.22', '34.2'),
    'retinanet pvtv2-b1': ('23.75', '23.8'),
    'retinanet resnet101': ('56.74', '56.7'),
    'retinanet resnext101-32x4d': ('56.37', '56.4'),
    'retinanet pvt-medium': ('53.94', '53.9'),
    'mask-rcnn resnet18': ('31.33', '31'),
    'mask-rcnn pvt-tiny': ('32.88', '33'),
    'mask-rcnn resnet50': ('44.40', '44'),
    'mask-rcnn swin-tiny': ('47.79', '48'),
    'mask-rcnn convnext-tiny': ('48.10', '48'),
    'mask-rcnn vmamba-tiny': ('42.40', '42'),
    'upernet resnet50': ('66.52', '67'),
    'upernet resnet101': ('85.51', '85'),
    'upernet swin-tiny': ('59.94', '60'),
    'upernet swin-small': ('81.26', '81'),
    'upernet-mln deit-small': ('57.99', '58'),
    'upernet-mln deit-base': ('144.17', '144'),
    'upernet vmamba-tiny': ('54.55', '55'),
    'upernet vmamba-small': ('76.07', '76'),
}
# The host's own config of the same classifier, of which the backbone, the
# width of the head and the initialisation are.
HOSTS_OWN = {
    'swin-tiny': '_base_/models/swin_transformer/tiny_224.py',
    'deit-tiny': 'deit/deit-tiny_4xb256_in1k.py',
    'deit-small': 'deit/deit-small_4xb256_in1k.py',
    'mobilevit-xsmall': '_base_/models/mobilevit/mobilevit_xs.py',
    'mobilevit-small': '_base_/models/mobilevit/mobilevit_s.py',
    'regnetx-800mf': '_base_/models/regnet/regnetx_800mf.py',
    'regnetx-1.6gf': '_base_/models/regnet/regnetx_1.6gf.py',
    'regnetx-4.0gf': '_base_/models/regnet/regnetx_4.0gf.py',
}
# Values that hosts' bases keep beside the model.
MODEL_VARIABLES = {
    'backbone_norm_cfg',
    'checkpoint',
    'data_preprocessor',
    'model',
    'norm_cfg',
}


def row(stem):
    name = read_name(stem)
    return ' '.join(filter(None, [name['method'], name['model']]))


def each(stems):
    return pytest.mark.parametrize('stem', stems, indirect=True)


CLASSIFIERS = [s for s in PEERS if read_name(s)['method'] is None]
# The 3x schedule trains the same models.
each_model = each([s for s in PEERS if read_name(s)['schedule'] != '3x'])
# PVT's protocol, RetinaNet's, exempts nothing from decay.
each_exempting = each(
    [s for s in PEERS if read_name(s)['method'] != 'retinanet']
)


@pytest.fixture(params=PEERS)
def stem(request):
    return request.param


@pytest.fixture
def config(stem):
    config = without_weights(load(stem))
    with DefaultScope.overwrite_default_scope(config.default_scope):
        yield config


@pytest.fixture
def meta_model(config):
    needed_packages(config)
    linspace, meta = meta_device()
    with linspace, meta:
        model = MODELS.build(config.model)
    return model.eval()


def count(model, trainable):
    return sum(
        p.numel()
        for p in model.parameters()
        if p.requires_grad or not trainable
    )


@each_model
def test_parameters(stem, meta_model):
    expected, printed = PARAMETERS[row(stem)]
    total = count(meta_model, trainable=stem.startswith('retinanet')) / 1e6
    assert f'{total:.2f}' == expected
    if printed is not None:
        step = 10.0 ** -len(printed.partition('.')[2])
        assert abs(total - float(printed)) < step


def test_there_is_a_config_for_every_row():
    assert {row(stem) for stem in PEERS} == set(PARAMETERS)
    schedules = [read_name(stem)['schedule'] for stem in PEERS]
    assert schedules.count('1x') - schedules.count('3x') == 9
    assert schedules.count('3x') == 6


@each_model
def test_heads_take_what_the_backbone_gives(meta_model):
    """Runs every layer but for the regions' heads, on shapes alone."""
    model = revert_sync_batchnorm(meta_model.to_empty(device='cpu'))
    kind = type(model).__name__
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        maps = model.extract_feat(torch.zeros(1, 3, 224, 224))
        if kind == 'ImageClassifier':
            assert model.head(maps).shape == (1, 1000)
        elif kind == 'EncoderDecoder':
            for head in (model.decode_head, model.auxiliary_head):
                assert head(maps).shape[1] == 150
        else:
            dense = 'bbox_head' if kind == 'RetinaNet' else 'rpn_head'
            assert len(getattr(model, dense)(maps)[0]) == len(maps) == 5


def plain(config):
    """A config's values without model, exempt parameters and CUDA graphs."""
    values = {k: v for k, v in config.items() if k not in MODEL_VARIABLES}
    values.pop('few_sizes', None)
    hooks = values.pop('custom_hooks', None) or []
    values['custom_hooks'] = [x for x in hooks if x['type'] != 'CUDAGraphHook']
    values['optim_wrapper'].get('paramwise_cfg', {}).pop('custom_keys', None)
    return ConfigDict(values).to_dict()


def test_trained_as_this_package_trains_its_own(stem, config):
    assert plain(config) == plain(load(recipe_of(stem)))


@each(CLASSIFIERS)
def test_classifiers_share_loss_and_batch_augmentation(stem, config):
    own = load(recipe_of(stem)).model
    assert config.model.train_cfg == own.train_cfg
    assert config.model.head.pop('in_channels') > 0
    own.head.pop('in_channels')
    assert config.model.head == own.head
    assert config.model.neck in (own.neck, None)


def test_drop_path_is_that_of_the_recipe(stem, config):
    rate = config.model.backbone.get('drop_path_rate')
    expected = 0.1 if config.model.type == 'ImageClassifier' else 0.2
    without = ('regnet', 'mobilevit', 'resnet', 'resnext')
    has_none = read_name(stem)['model'].startswith(without)
    assert rate == (None if has_none else expected)


def test_names(stem, config):
    name = read_name(stem)
    batch = config.train_dataloader.batch_size
    assert batch == int(name['images'])
    base_batch_size = config.auto_scale_lr.base_batch_size
    assert base_batch_size == int(name['gpus']) * batch
    mixed = config.optim_wrapper.type == 'AmpOptimWrapper'
    assert name['tricks'].startswith('-amp') == mixed
    assert ('neck' in config.model) or name['neck'] is None
    crop = (name['height'] and int(name['height']),) * 2
    if config.default_scope == 'mmseg':
        assert tuple(config.model.data_preprocessor.size) == crop
    else:
        assert crop == (None, None)


def test_weights_to_start_from(stem):
    config = load(stem)
    dense = config.model.type != 'ImageClassifier'
    backbone = config.model.backbone
    init_cfg = backbone.get('init_cfg') or {}
    weights = init_cfg.get('checkpoint') or config.model.get('pretrained')
    assert bool(weights) == dense
    if backbone.type == 'VMamba' and dense:
        assert weights == f'checkpoints/vmamba-{backbone.arch}_in1k.pth'
        assert init_cfg.prefix == 'backbone.'


@each([s for s in PEERS if row(s) in HOSTS_OWN])
def test_classifier_is_the_hosts_own(stem, config):
    theirs = get_config(f'mmpretrain::{HOSTS_OWN[row(stem)]}').model
    ours = config.model
    for model in (ours, theirs):
        model.backbone.pop('drop_path_rate', None)
    assert ours.backbone == theirs.backbone
    assert ours.neck == theirs.neck
    assert ours.head.in_channels == theirs.head.in_channels
    assert ours.get('init_cfg') == theirs.get('init_cfg')


RUN = (
    'vmamba-tiny_16xb64-amp-300e_in1k',
    'vim-tiny_16xb128-amp-300e_in1k',
    'retinanet_pvtv2-b0_fpn_8xb2-1x_coco',
    'mask-rcnn_vmamba-tiny_fpn_8xb2-amp-1x_coco',
    'upernet_vmamba-tiny_4xb4-160k_ade20k-512x512',
)


@each(RUN)
def test_loss_reaches_every_parameter(config):
    torch.manual_seed(0)
    if config.model.type == 'EncoderDecoder':
        config.model.data_preprocessor.size = (64, 64)
    if config.model.type == 'ImageClassifier':
        # As the runner does.
        config.model.data_preprocessor = config.data_preprocessor
    model = revert_sync_batchnorm(MODELS.build(config.model)).train()
    model.init_weights()
    data = batch(config, model, training=True)
    losses, _ = model.parse_losses(model(**data, mode='loss'))
    losses.backward()
    without = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.grad is None
    ]
    assert without == []
    assert all(
        p.grad.isfinite().all() for p in model.parameters() if p.requires_grad
    )


# The names that no recipe decays, wherever a model has them.
EXEMPT = ('cls_token', 'pos_embed', 'relative_position_bias_table', 'Ds')


@each_exempting
def test_positions_and_tokens_do_not_decay(config, meta_model):
    settings = config.optim_wrapper
    settings.type = 'OptimWrapper'
    settings.pop('loss_scale', None)
    names = {id(p): name for name, p in meta_model.named_parameters()}
    decays = {
        names[id(p)]: group['weight_decay']
        for group in build_optim_wrapper(
            meta_model, settings
        ).optimizer.param_groups
        for p in group['params']
    }
    exempt = {n: d for n, d in decays.items() if n.endswith(EXEMPT)}
    assert set(exempt.values()) <= {0.0}
    kind = type(meta_model.backbone).__name__
    marked = (
        'PyramidVisionTransformer',
        'SwinTransformer',
        'VMamba',
        'Vim',
        'VisionTransformer',
    )
    assert bool(exempt) == (kind in marked)


@pytest.mark.parametrize(
    'name',
    [
        'swin_tiny_16xb64-amp-300e_in1k',
        'mask_rcnn_swin-tiny_fpn_8xb2-1x_coco',
        'upernet_swin-tiny_160k_ade20k-512x512',
        'upernet_swin-tiny_4xb4-160k_ade20k-512',
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(pytest.fail.Exception, match='grammar'):
        read_name(name)
