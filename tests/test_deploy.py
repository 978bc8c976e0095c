import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from evmamba_mm import EfficientVMamba
from evmamba_mm.deploy import fuse
from evmamba_mm.layers import DropPath

from .configs.leaves import load

BLOCK_TYPES = {
    'default': ('evss', 'evss', 'inverted_residual', 'inverted_residual'),
    'one-of-each': ('evss', 'es2d', 'ss2d', 'inverted_residual'),
}
CLASSIFIER = 'evmamba-tiny_16xb128-amp-300e_in1k'


def trained(model):
    """Gives BatchNorms what training would: statistics and weights."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, -2, 2)
            nn.init.normal_(module.bias)
    return model


def backbone(block_types='default', with_cp=False):
    torch.manual_seed(1)
    return trained(
        EfficientVMamba(
            'atto',
            out_indices=(0, 1, 2, 3),
            block_types=BLOCK_TYPES[block_types],
            drop_path_rate=0.5,
            with_cp=with_cp,
        )
    )


def batch_norms(model):
    names = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
    return [m for m in model.modules() if isinstance(m, names)]


def drop_rates(model):
    return {m.drop_prob for m in model.modules() if isinstance(m, DropPath)}


@torch.no_grad()
def assert_same_maps(model, other, tolerance=1e-5):
    image = torch.randn(2, 3, 64, 96, generator=torch.manual_seed(2))
    pairs = list(zip(model.eval()(image), other(image), strict=True))
    assert len(pairs) == 4
    for expected, actual in pairs:
        assert actual.shape == expected.shape
        error = (actual - expected).norm() / expected.norm()
        assert error < tolerance


@pytest.mark.parametrize('block_types', BLOCK_TYPES)
def test_backbone_gives_the_same_maps(block_types):
    model = backbone(block_types)
    fused = fuse(model)
    assert len(batch_norms(model)) > 0
    assert batch_norms(fused) == []
    assert_same_maps(model, fused)


def test_copy_is_for_inference():
    model = backbone(with_cp=True).train()
    fused = fuse(model)
    assert not any(module.training for module in fused.modules())
    assert fused.with_cp is False
    assert drop_rates(fused) == {0.0}
    assert fused(torch.randn(1, 3, 32, 32))[-1].shape == (1, 128, 1, 1)


def test_original_is_left_alone():
    model = backbone(with_cp=True).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for parameter in fuse(model).parameters():
            parameter.zero_()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert model.training and model.with_cp
    assert max(drop_rates(model)) == 0.5


def test_twice_is_once():
    once = fuse(backbone())
    twice = fuse(once)
    first, second = once.state_dict(), twice.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(second[k], v) for k, v in first.items())


def test_synchronised_norms_are_folded_too():
    model = backbone()
    fused = fuse(nn.SyncBatchNorm.convert_sync_batchnorm(model))
    assert batch_norms(fused) == []
    assert_same_maps(model, fused)


def test_only_the_backbone_of_a_host_is_changed():
    neck = nn.Sequential(nn.Conv2d(128, 8, 1), nn.BatchNorm2d(8))
    host = nn.ModuleDict({'backbone': backbone(), 'neck': trained(neck)})
    fused = fuse(host)
    assert len(batch_norms(fused)) == len(batch_norms(fused['neck'])) == 1
    assert_same_maps(host['backbone'], fused['backbone'])


def test_classifier_gives_the_same_scores():
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    from mmengine.registry import MODELS, DefaultScope

    config = load(CLASSIFIER)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        config.model.data_preprocessor = config.data_preprocessor
        torch.manual_seed(0)
        model = trained(MODELS.build(config.model)).eval()
    fused = fuse(model)
    assert batch_norms(fused) == []
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, actual = model(image), fused(image)
    assert actual.shape == expected.shape
    assert (actual - expected).norm() / expected.norm() < 1e-5


def test_model_without_our_backbone_is_refused():
    with pytest.raises(ValueError, match='contain an EfficientVMamba, got'):
        fuse(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))


def changed_norm(pair):
    pair[1].register_forward_hook(lambda module, inputs, y: y * 2)


def changed_conv(pair):
    pair[0].register_forward_hook(lambda module, inputs, y: y * 2)


def own_forward(pair):
    pair[1].forward = lambda x: x + 1


class Shifted(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


def subclass(pair):
    pair[1].__class__ = Shifted


def pruned(pair):
    prune.l1_unstructured(pair[0], 'weight', 0.5)


def normalised_weight(pair):
    nn.utils.parametrizations.weight_norm(pair[0])


class Skipping(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + self[0](x)


def other_sequence(pair):
    pair.__class__ = Skipping


def without_statistics(pair):
    pair[1] = nn.BatchNorm2d(pair[1].num_features, track_running_stats=False)


@pytest.mark.parametrize(
    ('change', 'why'),
    [
        (changed_norm, 'the norm has a hook'),
        (changed_conv, 'the convolution has a hook'),
        (own_forward, 'the norm has a patched forward'),
        (subclass, 'the norm is a Shifted'),
        (pruned, 'the convolution has a tensor in the place of a parameter'),
        (normalised_weight, 'the convolution is a ParametrizedConv2d'),
        (without_statistics, 'the norm has no running_mean'),
        (other_sequence, 'their sequence is a Skipping, not a Sequential'),
    ],
)
def test_changed_pairs_stay_and_count(package_log, change, why):
    torch.manual_seed(0)
    model = EfficientVMamba('atto').eval()
    pair = model.stages[2][0].conv_pw
    change(pair)
    model.eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        (expected,) = model(image)
        copy = fuse(model)
        (actual,) = copy(image)
    assert type(copy.stages[2][0].conv_pw[1]) is not nn.Identity
    assert type(copy.stages[2][0].conv_dw[1]) is nn.Identity
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    (line,) = (r.getMessage() for r in package_log.records if r.levelno > 20)
    assert line.startswith('fuse leaves a ') and line.endswith(f': {why}')
