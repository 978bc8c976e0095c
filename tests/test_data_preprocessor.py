import copy

import numpy as np
import pytest
import torch

from evmamba_mm import BatchDataPreprocessor
from evmamba_mm.data.cached import StackedBatch

MEAN, STD = [10.0, 20.0, 30.0], [2.0, 3.0, 4.0]
AUGMENTS = dict(
    augments=[dict(type='Mixup', alpha=0.2), dict(type='CutMix', alpha=1.0)]
)


@pytest.fixture
def hosts():
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    from mmpretrain.models.utils import ClsDataPreprocessor
    from mmpretrain.structures import DataSample

    return ClsDataPreprocessor, DataSample


def batch(DataSample, labels):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        256, (len(labels), 3, 6, 5), generator=generator, dtype=torch.uint8
    )
    samples = [DataSample().set_gt_label(label) for label in labels]
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('stacked', [True, False])
@pytest.mark.parametrize(
    ('options', 'labels'),
    [
        (dict(), [1, 2, 0, 3]),
        (dict(mean=MEAN, std=STD, to_rgb=True), [1, 2, 0, 3]),
        (dict(to_onehot=True, num_classes=5), [[1], [2, 4], [0], [3]]),
        (
            dict(mean=MEAN, std=STD, num_classes=5, batch_augments=AUGMENTS),
            [1, 2, 0, 3],
        ),
    ],
    ids=['bare', 'normalised', 'several-labels', 'mixed'],
)
def test_batches_equal_those_of_mmpretrain(
    hosts, options, labels, stacked, training
):
    stock_class, DataSample = hosts
    stock, ours = stock_class(**options), BatchDataPreprocessor(**options)
    for seed in range(4):
        found = []
        for preprocessor in (stock, ours):
            data = batch(DataSample, copy.deepcopy(labels))
            if not stacked:
                data['inputs'] = list(data['inputs'])
            np.random.seed(seed)
            torch.manual_seed(seed)
            found.append(preprocessor(data, training))
        expected, actual = found
        torch.testing.assert_close(actual['inputs'], expected['inputs'])
        targets = [
            [
                sample.get('gt_score', sample.gt_label)
                for sample in each['data_samples']
            ]
            for each in (expected, actual)
        ]
        torch.testing.assert_close(targets[1], targets[0])


@pytest.mark.parametrize('with_label', [True, False])
@pytest.mark.parametrize('training', [True, False])
def test_soft_labels_equal_those_of_mmpretrain(hosts, with_label, training):
    stock_class, DataSample = hosts
    options = dict(num_classes=3, batch_augments=AUGMENTS)
    found = []
    for kind in (stock_class, BatchDataPreprocessor):
        data = batch(DataSample, [0, 1, 2, 1])
        for i, sample in enumerate(data['data_samples']):
            if not with_label:
                del sample.gt_label
            sample.set_gt_score(torch.tensor([0.2, 0.8 - i / 10, i / 10]))
        np.random.seed(1)
        torch.manual_seed(1)
        found.append(kind(**options)(data, training))
    expected, actual = found
    torch.testing.assert_close(actual['inputs'], expected['inputs'])
    for a, b in zip(*(x['data_samples'] for x in found), strict=True):
        torch.testing.assert_close(b.gt_score, a.gt_score)
        assert a.keys() == b.keys()


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    'options',
    [dict(), dict(num_classes=5, batch_augments=AUGMENTS)],
    ids=['bare', 'mixed'],
)
def test_labels_may_come_as_one_tensor(hosts, options, training):
    _, DataSample = hosts
    labels = [1, 2, 0, 3]
    listed = batch(DataSample, labels)
    stacked = dict(inputs=listed['inputs'], gt_label=torch.tensor(labels))
    found = []
    for data in (listed, stacked):
        np.random.seed(1)
        torch.manual_seed(1)
        found.append(BatchDataPreprocessor(**options)(data, training))
    assert torch.equal(found[0]['inputs'], found[1]['inputs'])
    for a, b in zip(*(x['data_samples'] for x in found), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys():
            assert torch.equal(a.get(key), b.get(key))


FLIP = [dict(type='BatchRandomFlip', prob=0.5)]


def test_images_are_augmented_in_training_alone(hosts):
    _, DataSample = hosts
    data = batch(DataSample, [0] * 16)
    images = data['inputs'].float()
    torch.manual_seed(0)
    ours = BatchDataPreprocessor(image_augments=FLIP)
    assert torch.equal(ours(dict(data), False)['inputs'], images)
    found = [ours(dict(data), True)['inputs'] for _ in range(3)]
    assert not torch.equal(found[0], found[1])
    for result in found:
        kept = (result == images).flatten(1).all(1)
        mirrored = (result == images.flip(3)).flatten(1).all(1)
        assert (kept ^ mirrored).all() and kept.any() and mirrored.any()
    # Of the same seed comes the same training.
    torch.manual_seed(0)
    again = BatchDataPreprocessor(image_augments=FLIP)
    for result in found:
        assert torch.equal(again(dict(data), True)['inputs'], result)
    assert copy.deepcopy(again)(dict(data), True)['inputs'].shape == (
        images.shape
    )


def test_compiler_leaves_it_as_it_is(hosts):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    preprocessor = BatchDataPreprocessor(image_augments=FLIP)

    def step():
        data = dict(inputs=images, gt_label=torch.arange(4))
        return preprocessor(data, True)['inputs'].mul(2).sum()

    images = batch(hosts[1], [1, 2, 0, 3])['inputs']
    torch.manual_seed(0)
    expected = step()
    torch.manual_seed(0)
    assert torch.compile(step, backend=backend)() == expected
    nodes = [node for graph in graphs for node in graph.graph.nodes]
    methods = [node.target for node in nodes if node.op == 'call_method']
    assert methods == ['mul', 'sum']


def test_autocast_changes_no_image(hosts):
    _, DataSample = hosts
    crop = [dict(type='BatchRandomResizedCrop', scale=16)]
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        ours = BatchDataPreprocessor(image_augments=crop)
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            found.append(ours(batch(DataSample, [0] * 4), True)['inputs'])
    assert torch.equal(*found)


def test_processes_augment_differently(hosts, monkeypatch):
    _, DataSample = hosts
    data = batch(DataSample, [0] * 32)
    found = []
    for rank in (0, 1):
        torch.manual_seed(0)
        monkeypatch.setattr(
            'evmamba_mm.data_preprocessor.get_rank', lambda rank=rank: rank
        )
        ours = BatchDataPreprocessor(image_augments=FLIP)
        found.append(ours(dict(data), True)['inputs'])
    assert not torch.equal(*found)


def test_images_without_labels(hosts):
    images = torch.ones(2, 3, 4, 4, dtype=torch.uint8)
    ours = BatchDataPreprocessor(mean=MEAN, std=STD)
    done = ours(dict(inputs=images))
    assert done['data_samples'] is None
    assert done['inputs'].dtype == torch.float32


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('together', [True, False])
@pytest.mark.parametrize('label', [-1, 5, 255])
def test_label_that_is_no_class(hosts, label, together, training):
    _, DataSample = hosts
    data = batch(DataSample, [0, 4, label])
    if together:
        data = dict(
            inputs=data['inputs'], gt_label=torch.tensor([0, 4, label])
        )
    ours = BatchDataPreprocessor(num_classes=5)
    with pytest.raises(
        ValueError,
        match=f'label {label}, and num_classes=5 .*'
        'model.head.num_classes and model.data_preprocessor.num_classes',
    ):
        ours(data, training)


def test_labels_of_a_data_set_in_memory_are_known(hosts):
    data = StackedBatch(
        inputs=torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        gt_label=torch.zeros(1, dtype=torch.long, device='cpu'),
    )
    data.label_limits = 0, 7
    BatchDataPreprocessor(num_classes=8)(data)
    with pytest.raises(ValueError, match='label 7, and num_classes=7'):
        BatchDataPreprocessor(num_classes=7)(data)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(type='RandomFlip', prob=0.5), 'changes one image, not a batch'),
        (dict(type='BatchRandomFlip', probability=1), 'cannot be built'),
        (dict(type='NoSuchTransform'), 'cannot be built'),
    ],
)
def test_transform_that_is_none_of_batches(hosts, config, message):
    from mmpretrain.utils import register_all_modules

    register_all_modules()
    with pytest.raises(ValueError, match=r'image_augments\[1\].*' + message):
        BatchDataPreprocessor(image_augments=[*FLIP, config])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='mean and std must come together'):
        BatchDataPreprocessor(mean=MEAN)
    with pytest.raises(ValueError, match=r'a number a channel .*std=\[1\]'):
        BatchDataPreprocessor(mean=MEAN, std=[1])
    with pytest.raises(ValueError, match='num_classes must be given'):
        BatchDataPreprocessor(to_onehot=True)
    images = [torch.ones(3, 4, 4), torch.ones(3, 5, 4)]
    with pytest.raises(ValueError, match='must have one size'):
        BatchDataPreprocessor()(dict(inputs=images))
    augmenting = BatchDataPreprocessor(image_augments=FLIP)
    with pytest.raises(ValueError, match='in uint8 to be augmented'):
        augmenting(dict(inputs=torch.ones(2, 3, 4, 4)), True)
