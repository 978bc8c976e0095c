"""The parameters add up to what the paper's tables were computed with."""

import pytest

from .leaves import LEAVES, read_name

CLASSIFIERS = {'tiny': 6_493_660, 'small': 11_273_688, 'base': 33_717_136}
# In millions, to the digit that is given.
DENSE = {
    ('retinanet', 'tiny'): '13.10',
    ('retinanet', 'small'): '19.32',
    ('retinanet', 'base'): '43.89',
    ('retinanet-std', 'tiny'): '15.99',
    ('retinanet-std', 'small'): '21.00',
    ('mask-rcnn', 'tiny'): '11.288',
    ('mask-rcnn', 'small'): '30.91',
    ('mask-rcnn', 'base'): '53.22',
    ('mask-rcnn-std', 'tiny'): '26.20',
    ('upernet', 'tiny'): '14.49',
    ('upernet', 'small'): '28.78',
    ('upernet', 'base'): '65.37',
    ('upernet-std', 'tiny'): '35.36',
    ('upernet-std', 'small'): '41.07',
}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    'leaf', [s for s in LEAVES if read_name(s).method is None], indirect=True
)
def test_classifier(leaf, meta_model):
    head = meta_model.head.fc
    missing = (1000 - head.out_features) * (head.in_features + 1)
    expected = CLASSIFIERS[read_name(leaf).size]
    assert count(meta_model) + missing == expected


@pytest.mark.parametrize(
    'leaf', [s for s in LEAVES if read_name(s).method], indirect=True
)
def test_detector_or_segmentor(leaf, meta_model):
    name = read_name(leaf)
    expected = DENSE[name.method, name.size]
    digits = len(expected.partition('.')[2])
    assert f'{count(meta_model) / 1e6:.{digits}f}' == expected
