import pytest
import torch
from torch import nn

from evmamba_mm.layers.bi_mamba import BiMamba

from ..backbones.peer_references import bi_mamba


def randomised(mixer):
    torch.manual_seed(0)
    for name, parameter in mixer.double().named_parameters():
        if not name.startswith('A_'):
            nn.init.normal_(parameter, std=0.3)
    return mixer


def test_equation():
    mixer = randomised(BiMamba(8, d_state=4, backend='naive'))
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = [bi_mamba(tokens, mixer.state_dict()) for tokens in x]
        torch.testing.assert_close(mixer(x), torch.stack(expected))


def test_every_module_is_called():
    mixer, called = BiMamba(8), []
    for name, module in mixer.named_children():
        module.register_forward_hook(lambda *_, n=name: called.append(n))
    mixer(torch.randn(1, 5, 8))
    assert set(called) == {name for name, _ in mixer.named_children()}


@pytest.mark.parametrize('name', ['dt_proj', 'dt_proj_b'])
def test_step_sizes_are_what_their_projection_gives(name):
    mixer, x = randomised(BiMamba(8)), torch.randn(1, 5, 8).double()
    before = mixer(x)
    projection = getattr(mixer, name)
    kept = projection.bias.detach().clone()
    projection.bias.data += 1
    assert (mixer(x) - before).abs().max() > 1e-3
    # A replaced module is the one that counts.
    twin = nn.Linear(*projection.weight.shape[::-1]).double()
    twin.load_state_dict({'weight': projection.weight, 'bias': kept})
    setattr(mixer, name, twin)
    torch.testing.assert_close(mixer(x), before)


def test_activation_is_made_by_the_argument():
    mixer = randomised(BiMamba(8, act=nn.GELU))
    x, inputs = torch.randn(2, 5, 8).double(), []
    mixer.act.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    y = mixer(x)
    # Of the value in each direction, and of the gate.
    assert len(inputs) == 3
    mixer.act = nn.SiLU()
    assert not torch.allclose(mixer(x), y)


def test_backwards_is_forwards_of_the_reversed_sequence():
    mixer = randomised(BiMamba(8))
    twin = BiMamba(8).double()
    swapped = {}
    for name, value in mixer.state_dict().items():
        stem, _, rest = name.partition('.')
        if stem in ('A_log', 'A_b_log'):
            stem = 'A_b_log' if stem == 'A_log' else 'A_log'
        elif stem not in ('in_proj', 'out_proj'):
            stem = stem[:-2] if stem.endswith('_b') else f'{stem}_b'
        swapped[f'{stem}.{rest}' if rest else stem] = value
    twin.load_state_dict(swapped)
    x = torch.randn(2, 6, 8).double()
    torch.testing.assert_close(twin(x.flip(1)).flip(1), mixer(x))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_close(dtype):
    torch.manual_seed(0)
    mixer, x = BiMamba(32), torch.randn(2, 50, 32)
    expected = mixer(x)
    with torch.autocast('cpu', dtype):
        actual = mixer(x)
    assert (actual.float() - expected).norm() / expected.norm() < 2e-2


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(channels=0), 'channels must be an integer'),
        (dict(channels=8, d_conv=0), 'd_conv must be an integer'),
        (dict(channels=8, dt_rank=0), 'dt_rank must be an integer'),
    ],
)
def test_illegal_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        BiMamba(**options)
