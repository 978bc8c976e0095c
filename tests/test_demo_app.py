"""The web page: over HTTP, and in a browser where there is one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import evmamba_mm  # noqa: F401

pytest.importorskip('gradio', reason='gradio is not installed')
pytest.importorskip('mmdet', reason='mmdet is not installed')
pytest.importorskip('mmseg', reason='mmseg is not installed')
pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')

from evmamba_mm import apis, demo_app

from .tools.inference_cases import photo, write
from .tools.test_infer import CONFIGS, ROOT

TOY = Path(__file__).parent / 'toy_classifier.py'
LEAST = 0.11
BROWSER = shutil.which('chromium') or shutil.which('google-chrome')


def load(host):
    """A model of a host with random weights."""
    (config,) = (ROOT / 'configs' / 'demo').glob(CONFIGS[host])
    torch.manual_seed(3)
    return apis.load_predictor(config, device='cpu')


@pytest.fixture(scope='module', params=CONFIGS)
def served(request):
    """(predictor, address) of a page that is served."""
    predictor = load(request.param)
    page = demo_app.build_page(predictor, 'a title')
    _, address, _ = page.launch(
        prevent_thread_lock=True, quiet=True, server_name='127.0.0.1'
    )
    yield predictor, address
    page.close()


def expected(predictor, path, score_thr=LEAST):
    if predictor.task == 'detection':
        predictor.score_thr = score_thr
    picture, sample = demo_app.look(predictor, str(path))
    return picture, demo_app.findings(predictor, predictor.describe(sample))


def rgb(path):
    return cv2.imread(str(path))[..., ::-1]


def rows_of(found):
    """What a page hands out: of a label its scores, of a table its rows."""
    if 'confidences' in found:
        pairs = found['confidences']
        return {pair['label']: pair['confidence'] for pair in pairs}
    return found['data']


def test_answers_over_http_are_those_of_the_predictor(served, tmp_path):
    from gradio_client import Client, handle_file

    predictor, address = served
    path = write(tmp_path / 'a.png', photo(0, 300, 400))
    client = Client(address, verbose=False, download_files=str(tmp_path))
    picture, found = client.predict(
        handle_file(str(path)), LEAST, 'auto', api_name='/predict'
    )
    wanted, rows = expected(predictor, path)
    assert rows
    assert (
        rows_of(found) == pytest.approx(rows)
        if isinstance(rows, dict)
        else rows_of(found) == rows
    )
    assert (rgb(picture) == wanted).all()


def test_a_broken_image_is_answered_by_its_reason(served, tmp_path):
    from gradio_client import Client, handle_file

    _, address = served
    path = tmp_path / 'a.png'
    path.write_bytes(write(tmp_path / 'b.png', photo(0)).read_bytes()[:900])
    client = Client(address, verbose=False)
    with pytest.raises(Exception, match='truncated'):
        client.predict(
            handle_file(str(path)), LEAST, 'auto', api_name='/predict'
        )


DROP = """async (data) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], 'a.png', {type: 'image/png'}));
  return transfer;
}"""


@pytest.fixture
def browser_page():
    playwright = pytest.importorskip(
        'playwright.sync_api', reason='playwright is not installed'
    )
    if BROWSER is None:
        pytest.skip('there is no Chromium or Chrome')
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=BROWSER, args=['--no-sandbox']
        )
        yield browser.new_page()
        browser.close()


def shown(page, before=None):
    """Address of the picture, once it is another one."""
    page.wait_for_function(
        'before => {'
        "const found = document.querySelector('#picture img');"
        'return found && found.complete && found.src != before}',
        arg=before,
    )
    return page.locator('#picture img').evaluate('image => image.src')


def fetched(page, address):
    content = page.request.get(address).body()
    return cv2.imdecode(np.frombuffer(content, np.uint8), 1)[..., ::-1]


def test_an_image_is_dropped_in_a_browser(served, browser_page, tmp_path):
    import base64

    predictor, address = served
    page = browser_page
    asked, wrong = [], []
    page.on('request', lambda request: asked.append(request.url))
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.goto(address)
    target = page.locator('button:has(input[type=file])').first
    path = write(tmp_path / 'a.png', photo(0, 300, 400))
    data = base64.b64encode(path.read_bytes()).decode()
    transfer = page.evaluate_handle(DROP, data)
    target.dispatch_event('drop', {'dataTransfer': transfer})
    source = shown(page)
    wanted, rows = expected(predictor, path, 0.3)
    assert (fetched(page, source) == wanted).all()
    if predictor.task == 'detection':
        number = page.locator('input[type=number]')
        number.fill(str(LEAST))
        number.press('Tab')
        source = shown(page, source)
        wanted, rows = expected(predictor, path)
        assert (fetched(page, source) == wanted).all()
    name = next(iter(rows)) if isinstance(rows, dict) else rows[0][0]
    written = page.get_by_text(str(name), exact=True)
    written.locator('visible=true').first.wait_for()
    away = [url for url in asked if url.startswith('http')]
    assert all(url.startswith(address) for url in away)
    assert not wrong


def test_the_command_serves_a_page(tmp_path):
    import httpx

    process = subprocess.Popen(
        [sys.executable, '-um', 'evmamba_mm.demo_app', str(TOY)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if 'http://127.0.0.1:' in line:
                break
        else:
            pytest.fail(''.join(lines))
        address = line.split()[-1]
        assert 'toy_classifier' in httpx.get(address).text
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'CONFIG'),
        (['none.py'], "there is no file 'none.py'"),
        ([str(TOY), 'none.pth'], "'none.pth': there is no such file"),
        ([str(TOY), '--cfg-options', 'modle=1'], "did you mean 'model'"),
    ],
    ids=['none', 'config', 'checkpoint', 'key'],
)
def test_a_mistake_is_told_in_a_line(arguments, message, capsys):
    try:
        assert demo_app.main(arguments) == 1
    except SystemExit as stop:
        assert stop.code == 2
    assert message in capsys.readouterr().err


def test_without_gradio_the_line_that_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    assert demo_app.main([str(TOY)]) == 1
    assert "pip install 'gradio" in capsys.readouterr().err


def test_two_classes_of_one_name_are_both_shown():
    found = demo_app.class_scores(['crane', 'dog', 'crane'], [0.5, 0.1, 0.4])
    assert json.dumps(found) == '{"crane": 0.5, "crane (2)": 0.4, "dog": 0.1}'
