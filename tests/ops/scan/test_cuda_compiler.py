"""What the CUDA sources are compiled from, and known by on the disk."""

import shutil

import pytest

from evmamba_mm.ops.scan.cuda import compiler

pytest.importorskip('cuda.bindings', reason='cuda-bindings is not installed')
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
