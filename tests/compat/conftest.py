import logging

import pytest
import torch

import evmamba_mm  # noqa: F401  mends what the tests import next


@pytest.fixture(
    params=[
        'cpu',
        pytest.param(
            'cuda',
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(), reason='there is no GPU'
            ),
        ),
    ]
)
def device(request):
    return torch.device(request.param)


@pytest.fixture
def package_log(caplog):
    """Captures the package's logger, which does not hand on its records."""
    logger = logging.getLogger('evmamba_mm')
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, 'evmamba_mm'):
        yield caplog
    logger.removeHandler(caplog.handler)
