import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools' / 'paper'))

from evidence import files  # noqa: E402
from evidence.claims import difference  # noqa: E402
from evidence.scores import Scores, read  # noqa: E402
from evidence.trainings import Training  # noqa: E402

FOLDER = ROOT / 'tools' / 'paper' / 'results' / 'evidence'
EVIDENCE = ROOT / 'configs' / 'evidence'
CONFIGS = sorted((EVIDENCE / 'tin50').glob('*.py'))
FINETUNED = [
    path
    for task in ('bccd', 'camvid', 'nuclei')
    for path in sorted((EVIDENCE / task).glob('*.py'))
]
LOG = """\
{"loss": 3.5, "epoch": 1, "step": 2, "lr": 0.1, "time": 1.0}
{"accuracy/top1": 10.0, "accuracy/top5": 40.0, "time": 0.1, "step": 1}
{"loss": 2.25, "epoch": 2, "step": 4, "lr": 0.1, "time": 1.0}
{"accuracy/top1": 20.5, "accuracy/top5": 60.0, "time": 0.1, "step": 2}
"""


def scores_of(**rows):
    return [
        dict(row=row, seed=seed, metric='accuracy/top1', value=value)
        for row, values in rows.items()
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ('better', 'worse', 'verdict'),
    [
        ([60, 61, 62], [50, 51, 52], 'holds'),
        ([50, 51, 52.5], [60, 61, 62], 'does not hold'),
        ([50, 60, 70], [60, 55, 65], 'undecided'),
        ([60], [50], 'not measured'),
        ([], [50, 51], 'not measured'),
    ],
)
def test_a_claim_is_judged_by_pairs_of_seeds(better, worse, verdict):
    found = difference(scores_of(a=better, b=worse), 'a', 'b')
    assert found.verdict == verdict


def test_interval_is_students():
    found = difference(scores_of(a=[1, 2, 6], b=[0, 0, 0]), 'a', 'b')
    # The mean of 1, 2, 6 and 4.303 standard errors of sqrt(7 / 3).
    assert found.mean == 3
    assert found.half == pytest.approx(4.3027 * (7 / 3) ** 0.5, rel=1e-4)


def test_last_scores_are_stored_with_their_curve(tmp_path):
    training = Training(Path('configs/evidence/tin50/tiny.py'), 3)
    log = training.work_dir(tmp_path) / 'date' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text(LOG)
    scores = Scores(tmp_path / 'scores', 'abc')
    assert training not in scores
    scores.store(training, tmp_path, 12.34, 2)
    assert training in scores
    assert Training(training.config, 4) not in scores
    first, second = read(tmp_path / 'scores' / 'tin50.csv')
    assert (first['metric'], first['value']) == ('accuracy/top1', '20.5')
    assert (second['metric'], second['value']) == ('accuracy/top5', '60.0')
    assert (first['epochs'], first['seconds']) == ('2', '12.3')
    assert 'randomness.seed=3' in first['command']
    curve = tmp_path / 'scores' / 'curves' / 'tin50_tiny_3.json'
    lines = [json.loads(line) for line in curve.read_text().splitlines()]
    assert lines[0] == dict(loss=3.5, epoch=1, step=2)
    assert lines[-1]['accuracy/top1'] == 20.5


def test_a_failed_training_is_told(tmp_path, warm_python):
    config = tmp_path / 'broken.py'
    config.write_text('model = dict(type="None")\n')
    ended = subprocess.run(
        [
            *(warm_python.path, 'tools/paper/collect_evidence.py', config),
            *('--seeds', '0', '--results', tmp_path / 'scores'),
            *('--work-dir', tmp_path / 'work'),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert 'broken, seed 0: it failed; see' in ended.stderr
    assert not (tmp_path / 'scores').exists()


def test_rows_are_those_of_the_configs():
    named = files.rows(FOLDER).keys()
    assert named == {path.stem for path in CONFIGS}
    assert {row['row'] for row in read(FOLDER / 'tin50.csv')} <= named


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_rows_differ_in_the_model_alone(path):
    base = Config.fromfile(path.parents[1] / '_base_' / 'tin50.py')
    row = Config.fromfile(path)
    assert row.keys() == base.keys()
    for key in base.keys() - {'model', 'custom_imports'}:
        assert row[key] == base[key], key


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_row_trains(path):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    model = Config.fromfile(path).model
    if model.backbone.type == 'TIMMBackbone':
        pytest.importorskip('timm', reason='timm is not installed')
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = MODELS.build(model)
    samples = [DataSample().set_gt_label(label) for label in (0, 49)]
    loss = built.loss(torch.rand(2, 3, 128, 128), samples)['loss']
    loss.backward()
    assert torch.isfinite(loss)
    from evmamba_mm.analysis import count_flops

    row = files.rows(FOLDER)[path.stem]
    flops = sum(count_flops(built.eval(), (1, 3, 128, 128)).values())
    assert f'{flops / 1e9:.3f}' == row['gflops']
    parameters = sum(x.numel() for x in built.parameters())
    assert f'{parameters / 1e6:.2f}' == row['mparams']


@pytest.mark.parametrize('path', FINETUNED, ids=lambda path: str(path)[-25:])
def test_a_backbone_fits_its_neck_or_head(path):
    for name in ('mmdet', 'mmseg', 'mmpretrain'):
        pytest.importorskip(name, reason=f'{name} is not installed')
    from mmengine.registry import MODELS, DefaultScope

    config = Config.fromfile(path)
    base = Config.fromfile(EVIDENCE / '_base_' / f'{path.parent.name}.py')
    for key in base.keys() - {'model', 'custom_imports', 'load_from'}:
        assert config[key] == base[key], key
    with DefaultScope.overwrite_default_scope(config.default_scope):
        config.model.backbone.pop('init_cfg', None)
        backbone = MODELS.build(config.model.backbone)
    part = config.model.get('neck') or config.model.decode_head
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 64))
    assert [x.shape[1] for x in maps] == part.in_channels
    assert isinstance(maps, tuple)


def test_last_weights_are_tested_besides(tmp_path):
    training = Training(Path('configs/evidence/camvid/tiny.py'), 0)
    folder = training.work_dir(tmp_path)
    folder.mkdir(parents=True)
    (folder / 'last_checkpoint').write_text('/elsewhere/iter_1000.pth')
    weights = dict(state_dict=dict(weight=torch.ones(1)))
    torch.save(weights, folder / 'iter_1000.pth')
    tests = training.tests(tmp_path)
    assert list(tests) == ['sliding window', 'multi-scale']
    for command in tests.values():
        assert str(folder / 'iter_1000.pth') in command
    log = folder / 'date' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('{"mIoU": 40.0, "step": 1000}\n')
    scores = Scores(tmp_path / 'scores', 'abc')
    with pytest.raises(ValueError, match='no finite scores'):
        scores.store(training, tmp_path, 1, 1)
    for command, value in zip(tests.values(), (41, 42), strict=True):
        found = Path(command[command.index('--work-dir') + 1])
        (found / 'date').mkdir(parents=True)
        (found / 'date' / 'date.json').write_text(f'{{"mIoU": {value}}}')
    scores.store(training, tmp_path, 1, 1)
    stored = {
        row['metric']: row['value']
        for row in read(tmp_path / 'scores' / 'camvid.csv')
    }
    assert stored == {
        'mIoU': '40.0',
        'mIoU, sliding window': '41',
        'mIoU, multi-scale': '42',
    }
