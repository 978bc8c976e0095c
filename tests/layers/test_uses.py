"""What users do with a backbone: hooks, adapters, pruning, quantisation."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state
from torch.nn.utils import parametrizations, prune

from evmamba_mm import EfficientVMamba
from evmamba_mm.backbones import Vim, VMamba

from ..fast.changes import LoraConv2d, LoraLinear, with_lora

OUTPUTS = (0, 1, 2, 3)
BACKBONES = {
    'efficientvmamba': partial(EfficientVMamba, 'atto', out_indices=OUTPUTS),
    'vmamba': partial(VMamba, 'atto', out_indices=OUTPUTS),
    'vim': partial(Vim, 'atto', img_size=64),
}
FAMILIES = pytest.mark.parametrize('family', BACKBONES)


def built(family='efficientvmamba', **options):
    torch.manual_seed(0)
    return BACKBONES[family](**options)


def image(batch=2, side=64, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, side, side)
    return torch.randn(shape, generator=generator, dtype=dtype)


def leaves(model):
    return {
        name: module
        for name, module in model.named_modules()
        if not list(module.children())
    }


def of_kind(model, *kinds):
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]


def replace(model, name, module):
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)


def loss_of(maps):
    return sum(x.square().mean() for x in maps)


def train(model, steps=2):
    """Take a few steps; every trained parameter has a gradient."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model(image()))
        loss.backward()
        missing = [n for n, p in trained.items() if p.grad is None]
        assert not missing
        optimizer.step()
        assert loss.isfinite()


def relative_error(actual, expected):
    return max(
        float((a.float() - e.float()).norm() / e.float().norm())
        for a, e in zip(actual, expected, strict=True)
    )


@pytest.mark.parametrize(
    'build',
    [
        partial(EfficientVMamba, 'tiny', out_indices=OUTPUTS),
        partial(VMamba, 'tiny', out_indices=OUTPUTS),
        partial(Vim, 'tiny', img_size=64),
    ],
    ids=BACKBONES,
)
def test_the_hook_of_every_leaf_runs(build):
    model = build().eval()
    called = set()
    for name, module in leaves(model).items():
        module.register_forward_hook(
            lambda m, args, y, name=name: called.add(name)
        )
    with torch.no_grad():
        model(image(1))
    assert called == set(leaves(model))


@pytest.mark.parametrize(
    'where',
    [
        'stages.0.1.conv_branch.3',
        'stages.1.0.conv_branch.3',
        'stages.1',
        'stages.2.0.conv_pw2.0',
        'stages.3',
        'stages.3.0.se',
    ],
)
def test_grad_cam(where):
    model = built().eval()
    kept = {}

    def keep(module, args, y):
        kept['map'] = y
        y.register_hook(lambda gradient: kept.update(gradient=gradient))

    model.get_submodule(where).register_forward_hook(keep)
    model(image())[-1].mean((2, 3))[:, 0].sum().backward()
    assert kept['map'].dim() == 4
    assert kept['gradient'].abs().sum() > 0
    weights = kept['gradient'].mean((2, 3), keepdim=True)
    cam = F.relu((weights * kept['map']).sum(1))
    assert cam.shape == (2, *kept['map'].shape[2:])
    assert cam.std() > 0


@FAMILIES
def test_a_counter_by_hooks_sees_every_parameter(family):
    model = built(family).eval()
    counted = {}

    def count(module, args, y):
        for parameter in module.parameters(recurse=False):
            counted[id(parameter)] = parameter.numel()

    for module in model.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        model(image(1))
    assert sum(counted.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.filterwarnings('ignore')
@FAMILIES
def test_dynamic_quantisation(family):
    quantization = pytest.importorskip('torch.ao.quantization')
    model = built(family).eval()
    quantised = quantization.quantize_dynamic(
        model, {nn.Linear}, dtype=torch.qint8
    )
    assert not of_kind(quantised, nn.Linear)
    with torch.no_grad():
        assert relative_error(quantised(image()), model(image())) < 0.05


@pytest.mark.filterwarnings('ignore')
def test_static_quantisation_observes_every_layer():
    quantization = pytest.importorskip('torch.ao.quantization')
    model = built().eval()
    model.qconfig = quantization.get_default_qconfig('x86')
    prepared = quantization.prepare(model)
    with torch.no_grad():
        prepared(image())
    layers = of_kind(prepared, nn.Linear, nn.Conv2d)
    assert len(layers) == len(of_kind(model, nn.Linear, nn.Conv2d))
    unseen = [
        name
        for name, layer in layers
        if not torch.isfinite(layer.activation_post_process.min_val).all()
    ]
    assert not unseen


class Int8Linear(nn.Linear):
    """Weight-only quantisation, as by hand."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        weight = linear.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        del self.weight
        self.bias = linear.bias
        self.register_buffer('weight_int8', (weight / scale).round().char())
        self.register_buffer('scale', scale)

    @property
    def weight(self):
        return self.weight_int8.to(self.scale) * self.scale


@FAMILIES
def test_weights_in_int8(family):
    model = built(family).eval()
    quantised = copy.deepcopy(model)
    for name, linear in of_kind(model, nn.Linear):
        replace(quantised, name, Int8Linear(linear))
    with torch.no_grad():
        error = relative_error(quantised(image()), model(image()))
    assert 0 < error < 0.05


def test_torchao():
    torchao = pytest.importorskip('torchao.quantization')
    model = built().eval()
    quantised = copy.deepcopy(model)
    torchao.quantize_(quantised, torchao.Int8WeightOnlyConfig())
    with torch.no_grad():
        assert relative_error(quantised(image()), model(image())) < 0.05


@FAMILIES
def test_lora_on_every_layer(family):
    model = built(family).requires_grad_(False)
    with torch.no_grad():
        before = model.eval()(image())
        for name, layer in of_kind(model, nn.Linear, nn.Conv2d):
            adapter = with_lora(layer)
            nn.init.zeros_(adapter.up.weight)
            replace(model, name, adapter)
        for a, b in zip(model(image()), before, strict=True):
            torch.testing.assert_close(a, b)
    train(model.train())
    ups = [m.up.weight for _, m in of_kind(model, LoraConv2d, LoraLinear)]
    assert all(up.abs().sum() > 0 for up in ups)


@FAMILIES
def test_pruning_every_layer(family):
    model = built(family)
    with torch.no_grad():
        before = model.eval()(image())
    layers = of_kind(model, nn.Linear, nn.Conv2d)
    for _, layer in layers:
        prune.l1_unstructured(layer, 'weight', amount=0.5)
        assert (layer.weight == 0).float().mean() >= 0.4
    with torch.no_grad():
        assert relative_error(model(image()), before) > 0.01
    train(model.train())
    for _, layer in layers:
        prune.remove(layer, 'weight')
    train(model)


@FAMILIES
def test_weight_norm_on_every_layer(family):
    model = built(family)
    with torch.no_grad():
        before = model.eval()(image())
        for _, layer in of_kind(model, nn.Linear, nn.Conv2d):
            parametrizations.weight_norm(layer)
        for a, b in zip(model(image()), before, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    train(model.train())


@pytest.mark.parametrize('how', ['deepcopy', 'pickle'])
@FAMILIES
def test_copies(family, how):
    model = built(family).eval()
    if how == 'deepcopy':
        copied = copy.deepcopy(model)
    else:
        copied = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        for a, b in zip(copied(image()), model(image()), strict=True):
            assert torch.equal(a, b)
        next(copied.parameters()).add_(1)
        assert relative_error(copied(image()), model(image())) > 0


@FAMILIES
def test_functional_call(family):
    model, other = built(family).eval(), BACKBONES[family]().eval()
    with torch.no_grad():
        called = functional_call(model, other.state_dict(), (image(),))
        for a, b in zip(called, other(image()), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings('ignore:There is a performance drop')
@FAMILIES
def test_vmap_over_an_ensemble(family):
    models = [BACKBONES[family]().eval() for _ in range(2)]
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to('meta')

    def call(parameters, buffers, x):
        return functional_call(base, (parameters, buffers), (x,))

    with torch.no_grad():
        outputs = torch.func.vmap(call, (0, 0, None))(
            parameters, buffers, image(1)
        )
        for i, model in enumerate(models):
            for a, b in zip(outputs, model(image(1)), strict=True):
                torch.testing.assert_close(a[i], b, rtol=1e-4, atol=1e-4)


@FAMILIES
def test_jvp_against_finite_differences(family):
    model = built(family).double().eval()
    x, tangent = (image(1, dtype=torch.float64) for _ in range(2))
    tangent = tangent.flip(3)
    step = 1e-5
    _, derivative = torch.func.jvp(model, (x,), (tangent,))
    with torch.no_grad():
        pairs = zip(
            model(x + step * tangent), model(x - step * tangent), strict=True
        )
        expected = [(a - b) / (2 * step) for a, b in pairs]
    for a, b in zip(derivative, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@FAMILIES
def test_the_meta_device(family):
    with torch.device('meta'):
        model = BACKBONES[family]()
    shapes = [y.shape for y in model(image().to('meta'))]
    assert shapes == [y.shape for y in built(family)(image())]


@pytest.mark.filterwarnings('ignore')
@FAMILIES
def test_jit_trace(family):
    model = built(family).eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, image(), check_trace=False)
        for a, b in zip(traced(image()), model(image()), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class MoreChannels(nn.Module):
    """Feeds an image of more channels to the convolution of a stem."""

    def __init__(self, conv, channels):
        super().__init__()
        self.mix = nn.Conv2d(channels, conv.in_channels, 1)
        self.conv = conv

    def forward(self, x):
        return self.conv(self.mix(x))


@FAMILIES
def test_an_adapter_around_the_stem(family):
    model = built(family)
    name = 'patch_embed.proj' if family == 'vim' else 'patch_embed.conv'
    replace(model, name, MoreChannels(model.get_submodule(name), 5))
    loss_of(model(torch.randn(2, 5, 64, 64))).backward()
    mix = model.get_submodule(name).mix
    assert mix.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    'bad',
    [None, [[0.0]], torch.zeros(1, 3, 64, 64, dtype=torch.uint8)],
    ids=['None', 'list', 'uint8'],
)
@FAMILIES
def test_what_is_no_image(family, bad):
    with pytest.raises(ValueError, match='the image must'):
        built(family)(bad)


@pytest.fixture
def process_group():
    distributed = torch.distributed
    store = distributed.HashStore()
    distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize('shard', ['whole', 'blocks'])
@FAMILIES
def test_fully_sharded(process_group, family, shard):
    fsdp = pytest.importorskip('torch.distributed.fsdp')
    if not hasattr(fsdp, 'fully_shard'):
        pytest.skip('needs FSDP2')
    mesh = torch.distributed.init_device_mesh('cpu', (1,))
    model, sharded = built(family), built(family)
    blocks = sharded.layers if family == 'vim' else sharded.stages
    for block in blocks if shard == 'blocks' else ():
        fsdp.fully_shard(block, mesh=mesh)
    fsdp.fully_shard(sharded, mesh=mesh)
    for net in (model, sharded):
        loss_of(net(image())).backward()
    pairs = zip(model.parameters(), sharded.parameters(), strict=True)
    for expected, actual in pairs:
        torch.testing.assert_close(actual.grad.full_tensor(), expected.grad)
