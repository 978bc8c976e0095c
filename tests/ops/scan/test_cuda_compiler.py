"""What the CUDA sources are compiled from, and known by on the disk."""

import shutil

import pytest
import torch

from evmamba_mm.ops.scan.cuda import compiler
from evmamba_mm.ops.scan.cuda.variant import (
    choose_variant,
    numbers_served,
)

pytest.importorskip('cuda.bindings', reason='cuda-bindings is not installed')
# Bytes of shared memory that a block can have there.
H200_MEMORY = 227 * 1024
HEADERS = [file.name for file in compiler._headers()]


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the sources, for the compiler to read."""
    folder = tmp_path / 'sources'
    shutil.copytree(compiler._SOURCES, folder)
    monkeypatch.setattr(compiler, '_SOURCES', folder)
    return folder


def key():
    return compiler._key('forward.cu', {'D': 96}, 'sm_90')


@pytest.mark.parametrize('name', ['forward.cu', *HEADERS])
def test_key_follows_the_source_and_every_header(name, sources):
    before = key()
    assert key() == before
    with (sources / name).open('a') as file:
        file.write('// changed\n')
    assert key() != before


def test_source_may_include_any_header(sources):
    (sources / 'extra.cuh').write_text('#define ANSWER 42\n')
    (sources / 'extra.cu').write_text(
        '#include "extra.cuh"\n'
        'extern "C" __global__ void f(int* p) { *p = ANSWER; }\n'
    )
    code, _ = compiler.compile_source('extra.cu', {}, 'sm_90')
    assert code.startswith(b'\x7fELF')


# Channels, states and rank; the last one's states fill no whole lanes.
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    'sizes', [(96, 16, 3), (384, 16, 12), (37, 16, 2), (64, 128, 4), (8, 5, 1)]
)
def test_blocks_get_the_shared_memory_that_they_take(sizes, dtype):
    for source, backward in [
        ('forward.cu', False),
        ('chunks.cu', False),
        ('chunks.cu', True),
        ('backward.cu', True),
    ]:
        variant = choose_variant(dtype, *sizes, backward, H200_MEMORY)
        constants = dict(variant.constants(source == 'backward.cu'))
        # An assertion in each source compares.
        code, _ = compiler.compile_source(source, constants, 'sm_90')
        assert code.startswith(b'\x7fELF')
        constants['SHARED'] -= 4
        with pytest.raises(RuntimeError, match='another size'):
            compiler.compile_source(source, constants, 'sm_90')


def test_as_many_states_are_kept_as_leave_room_for_two_blocks():
    by_width = [
        choose_variant(torch.bfloat16, *sizes, True, H200_MEMORY)
        for sizes in [(192, 16, 6), (384, 16, 12)]
    ]
    assert [variant.gap for variant in by_width] == [2, 4]
    for variant in by_width:
        assert variant.blocks_of_backward(H200_MEMORY) == 2


def test_every_rank_that_is_served_fits_a_small_gpu():
    memory = 99 * 1024
    for dtype in (torch.float32, torch.bfloat16):
        for states in (1, 16, 64, 65, 128):
            ranks = [r for r in range(512) if numbers_served(states, r)]
            assert max(ranks) == (112 if states > 64 else 224)
            sizes = (96, states, max(ranks))
            variant = choose_variant(dtype, *sizes, True, memory)
            assert variant.backward_bytes <= memory
