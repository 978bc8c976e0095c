"""Models whose convolutions have weights, but no parameters of their own."""

import copy

import pytest
import torch

from evmamba_mm import EfficientVMamba


@pytest.fixture
def net():
    torch.manual_seed(0)
    return EfficientVMamba('atto').eval()


def image():
    return torch.randn(
        2, 3, 64, 64, generator=torch.Generator().manual_seed(0)
    )


def emptied(net, keep):
    """A copy without parameters, each handed to `keep(module, name, x)`."""
    net = copy.deepcopy(net)
    for module in net.modules():
        for name, x in list(module._parameters.items()):
            if x is not None:
                del module._parameters[name]
                keep(module, name, x.detach())
    return net


@pytest.mark.parametrize(
    'keep',
    [
        # As torch.nn.DataParallel does in its replicas.
        lambda module, name, x: setattr(module, name, x),
        lambda module, name, x: module.register_buffer(name, x),
    ],
    ids=['attributes', 'buffers'],
)
def test_weights_that_are_no_parameters(net, keep):
    (expected,), (found,) = net(image()), emptied(net, keep)(image())
    torch.testing.assert_close(found, expected)


def test_fully_sharded_in_flat_parameters(net):
    distributed = torch.distributed
    store = distributed.HashStore()
    distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        fsdp = pytest.importorskip('torch.distributed.fsdp')
        (expected,) = net(image())
        sharded = fsdp.FullyShardedDataParallel(
            copy.deepcopy(net), device_id=torch.device('cpu')
        )
        (found,) = sharded(image())
    finally:
        distributed.destroy_process_group()
    torch.testing.assert_close(found, expected)
