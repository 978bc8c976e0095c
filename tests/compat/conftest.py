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
