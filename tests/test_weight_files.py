"""What is said about files that are no whole checkpoints."""

import gzip
import io
import os
import pickle
import zipfile

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint
from torch import nn

import evmamba_mm  # noqa: F401  makes mmengine read by weight_files
from evmamba_mm.apis.weights import load_weights
from evmamba_mm.cli.resume import choose_checkpoint
from evmamba_mm.cli.weights import check_weight_files
from evmamba_mm.weight_files import BrokenWeightsError, read_weights


def saved(value, legacy=False):
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as zipped:
        zipped.writestr('readme.txt', 'weights')
    return file.getvalue()


def changed(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


WEIGHTS = dict(meta=dict(iter=3), state_dict=dict(a=torch.arange(1000.0)))
GOOD = saved(WEIGHTS)
OLD = saved(WEIGHTS, legacy=True)
DAMAGED = 'is truncated or damaged'
BROKEN = {
    'empty': (b'', 'is empty (0 bytes)'),
    'truncated': (GOOD[:3000], DAMAGED),
    'without-its-end': (GOOD[:-10], DAMAGED),
    'beginning': (GOOD[:10], DAMAGED),
    'old-truncated': (OLD[:-10], DAMAGED),
    'changed-tensor': (changed(GOOD, 2000), 'were changed after it was'),
    'changed-keys': (changed(GOOD, 120), 'were changed after it was'),
    'web-page': (b'\n<!doctype html><html>', 'is a web page, not a checkp'),
    'git-lfs': (b'version https://git-lfs.github.com/spec/v1', 'git lfs pull'),
    'gzip': (gzip.compress(GOOD), 'is a gzip archive'),
    'zip': (archive(), 'is a zip archive that torch did not write'),
    'text': (b'weights', 'is a text file'),
    'noise': (bytes(range(7, 250)), 'is not a checkpoint; it begins with 07'),
    'pickle': (pickle.dumps(dict(a=1)), 'is a Python pickle'),
    'module': (saved(nn.Linear(2, 2)), 'more than tensors (torch.nn.modules'),
    'list': (saved([torch.ones(2)]), 'holds a list, not a state dict'),
    'none': (saved(None), 'holds None, not a state dict'),
    'no-weights': (saved(dict(meta={}, state_dict={})), 'not one tensor'),
    'no-dict': (saved(dict(WEIGHTS, state_dict=None)), 'is a NoneType, not'),
    'numbers': (saved({0: torch.ones(2)}), 'under the key 0; keys must be'),
    'safetensors': ((99).to_bytes(8, 'little') + b'{"a":', 'safetensors file'),
}


@pytest.mark.parametrize('data, what', BROKEN.values(), ids=BROKEN)
def test_broken_file_is_named_in_a_line(data, what, tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(data)
    with pytest.raises(BrokenWeightsError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert what in message
    assert '\n' not in message
    assert 'weights_only' not in message


@pytest.mark.parametrize('data', [GOOD, OLD], ids=['zip', 'old'])
def test_whole_file_is_read(data, tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(data)
    loaded = read_weights(path)
    assert loaded['meta'] == dict(iter=3)
    assert torch.equal(loaded['state_dict']['a'], torch.arange(1000.0))


def test_file_without_checksums_is_read(tmp_path):
    set_option = torch.serialization.set_crc32_options
    before = torch.serialization.get_crc32_options()
    set_option(False)
    # The checksum of an empty tensor is right by chance.
    more = dict(WEIGHTS, empty=torch.zeros(0))
    try:
        torch.save(more, tmp_path / 'a.pth')
    finally:
        set_option(before)
    assert read_weights(tmp_path / 'a.pth')['meta'] == dict(iter=3)


@pytest.mark.parametrize('record', ['code/a.py', 'models/model.json'])
def test_program_is_told_from_a_damaged_checkpoint(record, tmp_path):
    # Of TorchScript, which has a data.pkl too, and of torch.export.
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as file:
        file.writestr('a/data.pkl', b'')
        file.writestr(f'a/{record}', b'')
    with pytest.raises(BrokenWeightsError, match='holds a program'):
        read_weights(tmp_path / 'a.pth')


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no file'):
        read_weights(tmp_path / 'a.pth')
    with pytest.raises(BrokenWeightsError, match='is a folder'):
        read_weights(tmp_path)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
@pytest.mark.parametrize('what', ['folder', 'pipe', 'device'])
@pytest.mark.parametrize('tool', ['resume', 'load_from', 'predictor'])
def test_what_is_no_file_is_named(what, tool, tmp_path):
    path = tmp_path / 'a.pth'
    if what == 'folder':
        path.mkdir()
    elif what == 'pipe':
        os.mkfifo(path)
    else:
        path.symlink_to(os.devnull)
    cfg = Config(dict(work_dir=str(tmp_path), load_from=str(path)))
    with pytest.raises(BrokenWeightsError, match=f'is a {what}, not a check'):
        if tool == 'predictor':
            load_weights(nn.Linear(1, 1), cfg, None)
        check_weight_files(cfg)
        if tool == 'load_from':
            read_weights(path)
        choose_checkpoint(Config(dict(cfg, resume=True)))


@pytest.mark.parametrize('name', ['a.safetensors', 'a.pth'])
def test_mmengine_loads_safetensors(name, tmp_path):
    safetensors = pytest.importorskip(
        'safetensors.torch', reason='safetensors is not installed'
    )
    metadata = dict(arch='tiny', dataset_meta='{"classes": ["a"]}')
    path = tmp_path / name
    safetensors.save_file(WEIGHTS['state_dict'], path, metadata)
    loaded = CheckpointLoader.load_checkpoint(str(path), 'cpu')
    assert torch.equal(loaded['state_dict']['a'], torch.arange(1000.0))
    assert loaded['meta'] == dict(
        arch='tiny', dataset_meta=dict(classes=['a'])
    )
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BrokenWeightsError, match='safetensors file'):
        read_weights(path)


class Exploit:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), 'w')


def test_file_from_an_address_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    stored = tmp_path / 'hub' / 'checkpoints' / 'a.pth'
    stored.parent.mkdir(parents=True)
    torch.save(dict(state_dict=Exploit(tmp_path / 'marker')), stored)
    with pytest.raises(BrokenWeightsError, match='could run code.*delete it'):
        CheckpointLoader.load_checkpoint('https://example.com/a.pth')
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize('dtype', [torch.int64, torch.complex64])
def test_weights_that_are_no_floats(dtype, tmp_path):
    model, path = nn.BatchNorm2d(2), tmp_path / 'a.pth'
    weights = model.state_dict()
    torch.save(weights, path)
    # Its count of batches is an integer.
    load_checkpoint(model, str(path), strict=True)
    weights['bias'] = weights['bias'].to(dtype)
    torch.save(weights, path)
    with pytest.raises(
        BrokenWeightsError, match=f'1 weights.*bias of {dtype}'
    ):
        load_checkpoint(model, str(path))
    said = r'a\.pth: 1 weights'
    with pytest.raises(BrokenWeightsError, match=said):
        load_weights(model, Config(), str(path))
    runner = Runner(model, str(tmp_path), experiment_name=str(dtype))
    with pytest.raises(BrokenWeightsError, match=said):
        runner.load_checkpoint(str(path))
