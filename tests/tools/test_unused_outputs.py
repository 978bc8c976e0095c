import logging

import pytest
from mmengine.config import Config

from evmamba_mm.cli import checks


@pytest.mark.parametrize(
    ('launcher', 'start', 'more', 'told'),
    [
        ('pytorch', 1, {}, 'error'),
        ('none', 1, {}, 'warning'),
        ('pytorch', 0, {}, None),
        ('pytorch', 1, dict(frozen_stages=1), None),
        ('pytorch', 1, dict(type='ResNet'), None),
    ],
)
def test_outputs_that_the_neck_leaves(launcher, start, more, told, caplog):
    backbone = dict(type='EfficientVMamba', out_indices=(0, 1, 2, 3)) | more
    neck = dict(type='FPN', start_level=start)
    cfg = Config(
        dict(model=dict(backbone=backbone, neck=neck), launcher=launcher)
    )
    logger = logging.getLogger('evmamba_mm')
    logger.addHandler(caplog.handler)
    try:
        if told == 'error':
            with pytest.raises(ValueError, match='get no gradient'):
                checks.check_outputs(cfg)
        else:
            checks.check_outputs(cfg)
    finally:
        logger.removeHandler(caplog.handler)
    assert ('get no gradient' in caplog.text) == (told == 'warning')
