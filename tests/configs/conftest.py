import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from .leaves import LEAVES, load


@pytest.fixture(params=LEAVES)
def leaf(request):
    """The name of each config in turn."""
    return request.param


@pytest.fixture
def config(leaf):
    """The config, its host's names in reach, without pretrained weights."""
    config = load(leaf)
    if config.model.backbone.get('init_cfg') is not None:
        config.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(config.default_scope):
        yield config


@pytest.fixture
def meta_model(config):
    """The model without memory behind its parameters."""
    with torch.device('meta'):
        return MODELS.build(config.model)
