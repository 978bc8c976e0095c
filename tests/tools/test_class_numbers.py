"""Heads, data sets and scores of different classes are refused."""

import json
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from torch import nn

from evmamba_mm.cli.classes import ClassesHook, check_classes, check_scores

NORMALISED = dict(mean=[1.0], std=[2.0], num_classes=10)


def classifier(head, top=None, inner=None):
    model = dict(type='ImageClassifier', head=dict(num_classes=head))
    if inner:
        model['data_preprocessor'] = inner
    return Config(dict(model=model, data_preprocessor=top))


@pytest.mark.parametrize(
    'config, place',
    [
        (classifier(1000, NORMALISED), 'data_preprocessor'),
        (
            classifier(3, NORMALISED, dict(num_classes=10, mean=1, std=1)),
            'model.data_preprocessor',
        ),
    ],
    ids=['top', 'inner'],
)
def test_head_and_preprocessor_must_agree(config, place):
    with pytest.raises(ValueError, match=f'^{place}.num_classes is 10') as e:
        check_classes(config)
    assert 'set both to the number of classes of your data' in str(e.value)


def test_a_preprocessor_inside_of_the_model_drops_the_mean(package_log):
    inner = dict(num_classes=10)
    check_classes(classifier(10, NORMALISED, inner))
    assert 'images are not normalised' in package_log.text


@pytest.mark.parametrize(
    'config',
    [
        classifier(10, NORMALISED),
        classifier(10, NORMALISED, dict(NORMALISED)),
        classifier(10, None, dict(num_classes=10)),
        Config(dict(model=dict(type='MaskRCNN'))),
    ],
    ids=['top', 'both', 'inner', 'detector'],
)
def test_nothing_is_said_of_others(config, package_log):
    check_classes(config)
    assert package_log.text == ''


def model(**heads):
    """A model with heads by name, of so many classes."""
    built = nn.Module()
    for name, number in heads.items():
        head = nn.Module()
        head.num_classes = number
        built.add_module(name, head)
    return built


class XMLDataset(SimpleNamespace):
    def load_data_list(self):
        return []


class CocoDataset(SimpleNamespace):
    def load_data_list(self):
        return []

    load_data_list.__module__ = 'mmdet.datasets.coco'


def data(*classes, kind=SimpleNamespace, **attributes):
    return kind(metainfo=dict(classes=classes), **attributes)


class Accuracy:
    def __init__(self, topk):
        self.topk = topk


class Retrieval:
    """Ranks images, of which there may be more than classes."""

    topk = (1, 10)


def begin(model, train, val=None, topk=(1,)):
    """Runs the hook as the Runner does."""

    def loop(dataset):
        if dataset is None:
            return None
        return SimpleNamespace(
            dataloader=SimpleNamespace(dataset=dataset),
            evaluator=SimpleNamespace(metrics=[Accuracy(topk), Retrieval()]),
        )

    ClassesHook().before_run(
        SimpleNamespace(
            model=model,
            _train_loop=loop(train),
            _val_loop=loop(val),
            _test_loop=dict(),
        )
    )


def refusal(*arguments):
    with pytest.raises(SystemExit) as stopped:
        begin(*arguments)
    return stopped.value.code


@pytest.mark.parametrize('number', [1, 3])
@pytest.mark.parametrize('name', ['head', 'bbox_head', 'decode_head'])
def test_head_must_have_the_classes_of_the_data(name, number):
    said = refusal(model(**{name: number}), data('a', 'b'))
    assert said.startswith(
        f'error: model.{name}.num_classes is {number}, and the data set of '
        "train_dataloader has 2 ('a', 'b'). Set num_classes to 2, or "
    )


def test_all_wrong_heads_are_named_and_validation_is_checked():
    wrapped = nn.Module()
    wrapped.module = model(decode_head=5, auxiliary_head=6)
    said = refusal(wrapped, data(), data('a', 'b'))
    assert (
        'model.decode_head.num_classes is 5 and '
        'model.auxiliary_head.num_classes is 6'
    ) in said
    assert 'val_dataloader.dataset.metainfo.classes' in said


def test_other_heads_and_equal_numbers_pass(package_log):
    begin(model(bbox_head=2, rpn_head=1), data('a', 'b'), data('a', 'b'))
    begin(model(panoptic_head=133, bbox_head=80), data('a'))
    begin(model(head=3), SimpleNamespace())
    agnostic = model(mask_head=80)
    agnostic.mask_head.class_agnostic = True
    begin(agnostic, data('a'))
    assert package_log.text == ''


def test_other_names_in_the_validation_are_told(package_log):
    begin(model(head=2), data('a', 'b'), data('a', 'c'))
    assert "train_dataloader are 'a', 'b', those of" in package_log.text


def test_a_lone_name_is_no_tuple():
    train = SimpleNamespace(metainfo=dict(classes='cell'))
    assert "is the string 'cell', and must be a tuple: ('cell',)" in refusal(
        model(), train
    )


class IoUMetric:
    def __init__(self, metrics):
        self.metrics = metrics


def test_score_that_a_metric_has_not():
    for wrong in (['mIoU', 'miou'], 'mDICE'):
        with pytest.raises(ValueError, match='^val_evaluator.iou_metrics mu'):
            check_scores([IoUMetric(wrong)], ['a'], 'val')
    for legal in (['mIoU', 'mDice', 'mFscore'], 'mIoU'):
        check_scores([IoUMetric(legal)], ['a'], 'val')


@pytest.mark.parametrize('topk', [(1, 5), ('x',), (0,)])
def test_accuracy_among_more_classes_than_there_are(topk):
    said = refusal(model(), SimpleNamespace(), data('a', 'b'), topk)
    assert said.startswith('error: val_evaluator.topk is ')
    assert 'a number from 1 to 2' in said


@pytest.mark.parametrize(
    'there, legal',
    [
        (('a', 'b'), True),
        (('a', 'x', 'b'), True),
        (('b', 'a'), False),
        (('a',), False),
    ],
    ids=['same', 'more', 'order', 'lacking'],
)
@pytest.mark.parametrize('nested', [False, True])
def test_names_must_be_those_of_the_json(there, legal, nested, tmp_path):
    path = tmp_path / 'instances.json'
    categories = [dict(id=i, name=name) for i, name in enumerate(there)]
    path.write_text(json.dumps(dict(categories=categories)))
    train = data(
        *('a', 'b'),
        kind=CocoDataset,
        cat2label={0: 0},
        ann_file=str(path),
        backend_args=None,
    )
    if nested:
        train = data('a', 'b', datasets=[data('a', 'b', dataset=train)])
    if legal:
        begin(model(), train)
        return
    said = refusal(model(), train)
    assert "metainfo.classes is 'a', 'b', and " in said
    assert 'instances.json has the categories ' in said


def test_names_of_other_data_sets_stand_in_no_json(tmp_path):
    (tmp_path / 'train.txt').write_text('2007_01')
    begin(
        model(),
        data(
            *('a', 'b'),
            kind=XMLDataset,
            cat2label=dict(a=0, b=1),
            ann_file=str(tmp_path / 'train.txt'),
        ),
    )


class OwnHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_classes = 7


def test_heads_that_count_in_their_own_way():
    built = model(decode_head=1)
    built.decode_head.out_channels = 1
    built.own_head = OwnHead()
    begin(built, data('background', 'cell'))
