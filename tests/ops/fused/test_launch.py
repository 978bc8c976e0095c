import threading
from types import SimpleNamespace

import pytest
import torch

triton = pytest.importorskip('triton', reason='triton is not installed')
launch_module = pytest.importorskip('evmamba_mm.ops.fused.launch')
launch = launch_module.launch


class Compiled:
    """Stands for a compiled kernel."""

    function = 'function'
    packed_metadata = 'metadata'

    def __init__(self):
        self.started = []

    def run(self, *arguments):
        self.started.append(arguments)


class Kernel:
    """Stands for what ``triton.jit`` makes; notes what the JIT is given."""

    def __init__(self, makes=Compiled):
        self.fn = lambda: None
        self.pre_run_hooks = []
        self.makes = makes
        self.by_jit = []
        self.made = []

    def __getitem__(self, grid):
        def run(*arguments, **options):
            self.by_jit.append((grid, arguments, options))
            self.made.append(self.makes())
            return self.made[-1]

        return run


class OnGpu:
    """Stands for a tensor that need not be there."""

    def __init__(self, address=4096, dtype=torch.float32, device=0):
        self.address, self.dtype, self.device = address, dtype, device
        self.is_cuda = device >= 0

    def data_ptr(self):
        return self.address

    def get_device(self):
        return self.device


@pytest.fixture
def knobs(monkeypatch):
    """Triton and torch as on a GPU, and the knobs of such a Triton."""
    values = SimpleNamespace(
        runtime=SimpleNamespace(
            launch_enter_hook=SimpleNamespace(calls=[]),
            launch_exit_hook=SimpleNamespace(calls=[]),
            debug=False,
            add_stages_inspection_hook=None,
        ),
        compilation=SimpleNamespace(instrumentation_mode=''),
    )
    monkeypatch.setattr(triton, 'knobs', values, raising=False)
    monkeypatch.setattr(launch_module, '_KNOWN', True)
    monkeypatch.setattr(launch_module, '_kept', {})
    monkeypatch.setattr(launch_module, 'CompiledKernel', Compiled)
    monkeypatch.setattr(launch_module, '_current_device', lambda: 0)
    monkeypatch.setattr(launch_module, '_current_stream', lambda device: 70)
    return values


def start(
    kernel,
    tensors=None,
    numbers=(3, 0.5),
    constants=(16, True),
    warps=4,
    stages=None,
):
    tensors = tensors or (OnGpu(4096), None, OnGpu(8192))
    launch(kernel, (5, 2, 1), tensors, numbers, constants, warps, stages)


def test_first_launch_is_by_the_jit_and_the_next_is_not(knobs):
    kernel = Kernel()
    tensors = OnGpu(4096), None, OnGpu(8192)
    start(kernel, tensors)
    ((grid, arguments, options),) = kernel.by_jit
    assert grid == (5, 2, 1)
    assert arguments == (*tensors, 3, 0.5, 16, True)
    assert options == {'num_warps': 4}
    start(kernel, (OnGpu(160), None, OnGpu(320)))
    assert len(kernel.by_jit) == 1
    assert kernel.made[0].started == [
        (5, 2, 1, 70, 'function', 'metadata', None, None, None)
        + (160, None, 320, 3, 0.5, 16, True)
    ]


@pytest.mark.parametrize(
    'change',
    [
        dict(numbers=(4, 0.5)),
        dict(numbers=(3, 0.25)),
        dict(constants=(32, True)),
        dict(constants=(16, False)),
        dict(warps=8),
        dict(stages=3),
        dict(tensors=(OnGpu(), None, OnGpu(dtype=torch.float16))),
        dict(tensors=(OnGpu(), OnGpu(), None)),
        dict(tensors=(OnGpu(), OnGpu(), OnGpu())),
    ],
    ids=[
        'int',
        'float',
        'constant',
        'flag',
        'warps',
        'stages',
        'dtype',
        'absent',
        'present',
    ],
)
def test_what_the_jit_would_see_is_compiled_anew(change, knobs):
    kernel = Kernel()
    start(kernel)
    start(kernel, **change)
    assert len(kernel.by_jit) == 2
    start(kernel)
    start(kernel, **change)
    assert len(kernel.by_jit) == 2
    assert [len(made.started) for made in kernel.made] == [1, 1]


def test_tensors_of_two_gpus_are_left_to_the_jit(knobs):
    kernel, apart = Kernel(), (OnGpu(), None, OnGpu(device=1))
    for _ in range(2):
        start(kernel, tensors=apart)
    assert len(kernel.by_jit) == 2
    assert not any(made.started for made in kernel.made)


def test_stages_reach_the_jit(knobs):
    kernel = Kernel()
    start(kernel, stages=3)
    assert kernel.by_jit[0][2] == {'num_warps': 4, 'num_stages': 3}


def test_kernels_do_not_mix(knobs):
    first, second = Kernel(), Kernel()
    start(first)
    start(second)
    assert len(first.by_jit) == len(second.by_jit) == 1


def test_other_device_is_made_the_current_one(knobs, monkeypatch):
    current, seen = [0], []

    class Device:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            current[0] = self.index

        def __exit__(self, *error):
            current[0] = 0

    monkeypatch.setattr(torch.cuda, 'device', Device)
    monkeypatch.setattr(launch_module, '_current_device', lambda: current[0])
    monkeypatch.setattr(
        launch_module, '_current_stream', lambda device: seen.append(device)
    )
    kernel = Kernel()
    there = OnGpu(device=1), OnGpu(device=1)
    for tensors in (None, there, None, there):
        start(kernel, tensors)
    assert len(kernel.by_jit) == 2
    assert seen == [0, 1]
    assert current == [0]


@pytest.mark.parametrize(
    'tensors',
    [
        (OnGpu(4104), OnGpu()),
        (OnGpu(), OnGpu(4097)),
        (OnGpu(device=-1), OnGpu(device=-1)),
        (OnGpu(), OnGpu(device=-1)),
    ],
    ids=['8-bytes', '1-byte', 'cpu', 'one-on-cpu'],
)
def test_always_by_the_jit(tensors, knobs):
    kernel = Kernel()
    for _ in range(3):
        start(kernel, tensors)
    assert len(kernel.by_jit) == 3


@pytest.mark.parametrize(
    ('version', 'known'),
    [
        ('3.3.1', False),
        ('3.5.1', False),
        ('3.6.0', True),
        ('3.7.0', True),
        ('3.8.0+git1', True),
        ('3.9.0', False),
        ('4.0.0', False),
    ],
)
def test_known_versions(version, known):
    assert launch_module._is_known(version) == known


def test_unknown_version_is_always_by_the_jit(knobs, monkeypatch, caplog):
    caplog.set_level('INFO', 'evmamba_mm')
    launch_module._say_unknown.cache_clear()
    monkeypatch.setattr(launch_module, '_KNOWN', False)
    # An old one has none.
    monkeypatch.delattr(triton, 'knobs')
    kernel = Kernel()
    for _ in range(3):
        start(kernel)
    assert len(kernel.by_jit) == 3
    assert sum('takes the CPU' in x for x in caplog.messages) == 1


def test_what_is_not_a_compiled_kernel_is_not_kept(knobs):
    kernel = Kernel(makes=lambda: None)
    for _ in range(3):
        start(kernel)
    assert len(kernel.by_jit) == 3


@pytest.mark.parametrize(
    'follow',
    [
        lambda knobs, kernel: knobs.runtime.launch_enter_hook.calls.append(0),
        lambda knobs, kernel: knobs.runtime.launch_exit_hook.calls.append(0),
        lambda knobs, kernel: setattr(
            knobs.runtime, 'launch_enter_hook', print
        ),
        lambda knobs, kernel: kernel.pre_run_hooks.append(0),
        lambda knobs, kernel: setattr(knobs.runtime, 'debug', True),
        lambda knobs, kernel: setattr(
            knobs.runtime, 'add_stages_inspection_hook', print
        ),
        lambda knobs, kernel: setattr(
            knobs.compilation, 'instrumentation_mode', 'consan'
        ),
    ],
    ids=[
        'enter-hook',
        'exit-hook',
        'bare-hook',
        'pre-run-hook',
        'debug',
        'stages-hook',
        'instrumentation',
    ],
)
def test_launch_that_is_followed_is_by_the_jit(follow, knobs):
    kernel = Kernel()
    start(kernel)
    follow(knobs, kernel)
    start(kernel)
    start(kernel)
    assert len(kernel.by_jit) == 3
    assert kernel.made[0].started == []


def test_no_more_are_kept_than_some(knobs, monkeypatch):
    monkeypatch.setattr(launch_module, '_MOST_KEPT', 4)
    kernel = Kernel()
    for number in range(11):
        start(kernel, numbers=(number,))
        assert len(launch_module._kept) <= 4
    start(kernel, numbers=(10,))
    assert len(kernel.by_jit) == 11


def test_threads_share_what_is_kept(knobs, monkeypatch):
    monkeypatch.setattr(launch_module, '_MOST_KEPT', 3)
    kernel, errors = Kernel(), []

    def work():
        try:
            for number in range(300):
                start(kernel, numbers=(number % 5,))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    started = sum(len(made.started) for made in kernel.made)
    assert started + len(kernel.by_jit) == 4 * 300
