"""Both portable forms of the scan against the naive one in fp64."""

import pytest
import torch

from evmamba_mm.export.scans import (
    CHUNK_STEPS,
    scan_in_chunks,
    scan_written_out,
    softplus,
)
from evmamba_mm.ops import selective_scan

FORMS = {'chunks': scan_in_chunks, 'written-out': scan_written_out}


@pytest.mark.parametrize('length', [1, CHUNK_STEPS, CHUNK_STEPS + 1, 63])
@pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)
def test_form_is_the_scan(form, length):
    torch.manual_seed(0)
    groups, batch, channels, states = 3, 2, 5, 4
    u, delta = torch.randn(2, groups, batch, length, channels).double()
    delta = delta.exp()
    A = -torch.rand(groups, states, channels).double()
    B, C = torch.randn(2, groups, batch, length, states).double()

    def flat(x):
        return x.permute(1, 0, 3, 2).flatten(1, 2)

    expected = selective_scan(
        flat(u),
        flat(delta),
        A.mT.flatten(0, 1),
        B.permute(1, 0, 3, 2),
        C.permute(1, 0, 3, 2),
        delta_softplus=False,
        backend='naive',
    )
    torch.testing.assert_close(flat(form(u, delta, A, B, C)), expected)


def test_softplus_is_exact_to_rounding():
    x = torch.linspace(-80, 100, 4001)
    expected = torch.nn.functional.softplus(x.double(), threshold=1000)
    error = (softplus(x) - expected).abs() / expected
    assert error.max() < 1e-6
