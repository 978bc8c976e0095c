import pytest
from mmengine.config import Config

from evmamba_mm.cli import checks

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
        checks.check_classes(config)
    assert 'set both to the number of classes of your data' in str(e.value)


def test_a_preprocessor_inside_of_the_model_drops_the_mean(package_log):
    inner = dict(num_classes=10)
    checks.check_classes(classifier(10, NORMALISED, inner))
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
    checks.check_classes(config)
    assert package_log.text == ''
