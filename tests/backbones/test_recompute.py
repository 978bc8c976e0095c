import pytest
import torch

from evmamba_mm.backbones.recompute import checkpoint_block
from evmamba_mm.layers import ConvBranch


@pytest.mark.parametrize('backend', ['torch', 'triton'])
def test_statistics_count_a_batch_once(backend, monkeypatch):
    pytest.importorskip('triton', reason='triton is not installed')
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', backend)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    block = ConvBranch(12).to(device)
    x = torch.randn(2, 5, 3, 12, device=device)
    found = []
    start = {name: v.clone() for name, v in block.state_dict().items()}
    for run in (block, lambda x: checkpoint_block(block, x)):
        block.load_state_dict(start)
        block.zero_grad()
        run(x).square().sum().backward()
        found.append(
            {name: v.clone() for name, v in block.state_dict().items()}
            | {n: p.grad for n, p in block.named_parameters()}
        )
    plain, recomputed = found
    assert plain.keys() == recomputed.keys()
    for name, value in plain.items():
        assert torch.equal(value, recomputed[name]), name
    assert block[1].num_batches_tracked.item() == 1
