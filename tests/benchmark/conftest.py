import numpy as np
import pytest

from evmamba_mm.benchmark import data, timing

from .tool import ROOT


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(data, 'IMAGES', 4)
    monkeypatch.setattr(timing, 'WARM_UP', 1)
    monkeypatch.setattr(timing, 'REPEAT_SECONDS', 0)
    monkeypatch.chdir(ROOT)


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / 'toy.py'
    base = ROOT / 'configs/mmpretrain/evmamba-tiny_16xb128-amp-300e_in1k.py'
    path.write_text(
        f"_base_ = '{base}'\n"
        "init_cfg = dict(type='Pretrained', checkpoint='missing.pth')\n"
        "model = dict(backbone=dict(arch='atto', init_cfg=init_cfg),\n"
        '             head=dict(in_channels=128))\n'
        "optim_wrapper = dict(type='OptimWrapper')\n"
        'train_dataloader = dict(batch_size=2)\n'
    )
    return path


@pytest.fixture
def class_folders(tmp_path):
    import cv2

    for number in range(4):
        path = tmp_path / 'images' / f'class{number % 2}' / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (60, 50, 3))
        cv2.imwrite(str(path), noise.astype(np.uint8))
    return tmp_path / 'images'
