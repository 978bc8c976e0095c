"""Weights are fetched from a page, here one on this machine."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader

from evmamba_mm import apis
from evmamba_mm.hub import RELEASED

from ..hub.released_files import save_released


class Page(BaseHTTPRequestHandler):
    """Lists a file and sends it, or a part, or stops on the way."""

    content = b''
    name = RELEASED['tiny'].file
    digest = ''
    stops_after = None
    ranges = []

    def do_GET(self):
        if self.path.startswith('/api/models/TerryPei/EfficientVMamba-Tiny'):
            file = dict(path=self.name, lfs=dict(oid=self.digest))
            self.answer(
                200, json.dumps([dict(path='README.md'), file]).encode()
            )
        elif self.path.endswith(f'/resolve/main/{self.name}'):
            self.send_file()
        else:
            self.answer(404, b'')

    def send_file(self):
        wanted = re.match(r'bytes=(\d+)-', self.headers.get('Range', ''))
        type(self).ranges.append(wanted and int(wanted[1]))
        start = int(wanted[1]) if wanted else 0
        if start >= len(self.content):
            self.answer(416, b'')
            return
        self.answer(206 if wanted else 200, self.content[start:])

    def answer(self, status, body):
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if status == 200 and body == self.content:
            body = body[: self.stops_after]
        self.wfile.write(body)

    def log_message(self, text, *values):
        pass


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    path = tmp_path_factory.mktemp('far') / 'tiny.ckpt'
    save_released(path, 'tiny', 1000)
    return path.read_bytes()


@pytest.fixture
def page(released, monkeypatch, tmp_path):
    digest = hashlib.sha256(released).hexdigest()
    settings = dict(content=released, digest=digest, ranges=[])
    handler = type('OwnPage', (Page,), settings)
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f'http://127.0.0.1:{server.server_port}'
    monkeypatch.setenv('HF_ENDPOINT', host)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    yield handler
    server.shutdown()
    server.server_close()


def test_a_backbone_loads_its_weights_by_name(page, tmp_path):
    backbone = apis.load_backbone('tiny')
    folder = tmp_path / 'torch' / 'hub' / 'checkpoints'
    assert sorted(path.name for path in folder.iterdir()) == [
        'efficient_vmamba_tiny.ckpt',
        'evmamba-tiny_in1k.pth',
    ]
    stored = torch.load(folder / 'evmamba-tiny_in1k.pth')['state_dict']
    key = 'backbone.patch_embed.conv.weight'
    assert torch.equal(backbone.patch_embed.conv.weight, stored[key])
    CheckpointLoader.load_checkpoint('evmamba://tiny')
    # A second use reads the file.
    assert page.ranges == [None]


def test_a_stopped_transfer_is_continued(page, tmp_path):
    target = tmp_path / 'a' / 'tiny.pth'
    page.stops_after = 10_000
    with pytest.raises(ValueError, match='10000 of .*Run this again'):
        apis.fetch_released('tiny', target)
    assert not target.exists()
    assert apis.fetch_released('tiny', target) == target
    assert page.ranges == [None, 10_000]
    assert (target.parent / page.name).read_bytes() == page.content


def test_a_part_that_is_whole_or_of_another_file_is_dropped(page, tmp_path):
    part = tmp_path / (page.name + '.part')
    part.write_bytes(page.content + b'more')
    apis.fetch_released('tiny', tmp_path / 'tiny.pth')
    assert page.ranges == [len(page.content) + 4, None]


def test_another_file_than_the_page_says_is_refused(page, tmp_path):
    page.digest = '0' * 64
    with pytest.raises(ValueError, match='delete it and fetch it again'):
        apis.fetch_released('tiny', tmp_path / 'tiny.pth')


def test_a_file_of_another_name_is_found_if_it_is_the_only_one(page, tmp_path):
    page.name = 'model_best.pth'
    apis.fetch_released('tiny', tmp_path / 'tiny.pth')
    page.name = 'notes.txt'
    with pytest.raises(ValueError, match='it has README.md, notes.txt'):
        apis.fetch_released('tiny', tmp_path / 'other.pth')


def test_what_cannot_be_fetched_is_told(page, tmp_path):
    with pytest.raises(ValueError, match='one of tiny, small, base, got'):
        apis.fetch_released('huge')
    with pytest.raises(ValueError, match='cannot be read.*convert_check'):
        apis.fetch_released('base', tmp_path / 'base.pth')
