"""A few trials of the script, which finds what is planted."""

import pytest

from evmamba_mm.ops.scan import torch_scan

from . import scans


@pytest.mark.parametrize('first', (100_020, 100_100))
def test_scans_and_backbones_equal_naive_fp64(first):
    found = [(seed, *scans.trial(seed)) for seed in range(first, first + 20)]
    assert [entry for entry in found if entry[2]] == []


def test_a_trial_is_named_by_its_seed():
    assert scans.trial(100_003) == scans.trial(100_003)


def test_a_planted_error_is_found(monkeypatch):
    scan = torch_scan._linear_scan

    def planted(*arguments):
        return scan(*arguments).mul_(1.001)

    monkeypatch.setattr(torch_scan, '_linear_scan', planted)
    wrong = [scans.trial(seed)[1] for seed in range(100_000, 100_030)]
    assert any('error' in (each or '') for each in wrong)
