"""A model loaded, asked and looked into from Python."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from evmamba_mm import apis
from evmamba_mm.apis.features import backbone_outputs

from ..tools.inference_cases import cv2, photo, write

for host in ('mmcv', 'mmpretrain'):
    pytest.importorskip(host, reason=f'{host} is not installed')

TOY = str(Path(__file__).parents[1] / 'toy_classifier.py')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    cfg = Config.fromfile(TOY)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(0)
        weights = MODELS.build(cfg.model).state_dict()
    path = tmp_path_factory.mktemp('weights') / 'toy.pth'
    meta = dict(dataset_meta=dict(classes=('cat', 'dog')))
    torch.save(dict(state_dict=weights, meta=meta), path)
    return str(path)


@pytest.fixture(scope='module')
def predictor(checkpoint):
    return apis.load_predictor(TOY, checkpoint, 'cpu')


def test_paths_and_arrays_are_predicted_alike(predictor, tmp_path):
    path = write(tmp_path / 'a.png', photo(0))
    images = [path, str(path), cv2.imread(str(path))]
    found = [
        predictor.describe(outcome.sample)
        for outcome in apis.predict(predictor, images, batch_size=2)
    ]
    assert found[0] == found[1]
    # In a batch of its own, of which a sum may be rounded otherwise.
    scores = found[0].pop('scores'), found[2].pop('scores')
    score = found[0].pop('score'), found[2].pop('score')
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)
    assert score[1] == pytest.approx(score[0], abs=1e-6)
    assert found[0] == found[2]
    assert found[0]['class_name'] in ('cat', 'dog')


def test_an_image_that_is_not_there_stops_no_other(predictor, tmp_path):
    path = write(tmp_path / 'a.png', photo(0))
    lost, found = apis.predict(predictor, [tmp_path / 'none.png', path])
    assert isinstance(lost.error, Exception)
    assert (found.error, found.key) == (None, 1)


def test_files_are_drawn_and_counted(predictor, tmp_path):
    for name in ('a.png', 'b.png'):
        write(tmp_path / 'in' / name, photo(0))
    out = tmp_path / 'out'
    count = apis.predict_files(
        predictor, tmp_path / 'in', out, write_json=True
    )
    assert count == 2
    record = json.loads((out / 'a.json').read_text())
    assert record['task'] == 'classification'
    with pytest.raises(ValueError, match='does not exist'):
        apis.predict_files(predictor, tmp_path / 'none.png', out)


def test_features_are_those_of_the_backbone(predictor, tmp_path):
    image = photo(0)
    maps = apis.extract_features(predictor, image)
    prepared, sample = predictor.prepare(image)
    batch = dict(inputs=[prepared], data_samples=[sample])
    inputs = predictor.model.data_preprocessor(batch)['inputs']
    with torch.no_grad():
        expected = predictor.model.backbone(inputs)
    assert len(maps) == len(expected)
    for one, other in zip(maps, expected, strict=True):
        assert one.dim() == 4 and not one.requires_grad
        torch.testing.assert_close(one, other)


def test_extract_feat_serves_where_there_is_no_backbone():
    model = SimpleNamespace(extract_feat=lambda x: x)
    (only,) = backbone_outputs(model, torch.ones(1, 2, 3, 3))
    assert only.shape == (1, 2, 3, 3)
    with pytest.raises(ValueError, match='neither a backbone'):
        backbone_outputs(SimpleNamespace(), torch.ones(1))


def test_weights_of_another_model_are_refused(checkpoint, tmp_path):
    stored = torch.load(checkpoint)
    stored['state_dict'].popitem()
    path = tmp_path / 'less.pth'
    torch.save(stored, path)
    with pytest.raises(ValueError, match='does not fit the model'):
        apis.load_predictor(TOY, str(path), 'cpu')


def test_config_of_another_toolbox_is_refused(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("default_scope = 'mmpose'\nmodel = dict()\n")
    with pytest.raises(ValueError, match="is 'mmpose'; legal are"):
        apis.load_predictor(config)


def test_a_file_is_fetched_once_and_checked(tmp_path):
    content = np.arange(9).tobytes()
    (tmp_path / 'there').write_bytes(content)
    url = (tmp_path / 'there').as_uri()
    digest = '1' * 64
    target = tmp_path / 'new' / 'here'
    assert apis.fetch(url, target) == target
    assert target.read_bytes() == content
    with pytest.raises(ValueError, match=f'and not {digest}'):
        apis.fetch(url, target, digest)
    (tmp_path / 'there').unlink()
    assert apis.fetch(url, target) == target
    with pytest.raises(ValueError, match='could not be fetched'):
        apis.fetch(url, tmp_path / 'other')
    assert sorted(p.name for p in target.parent.iterdir()) == ['here']
