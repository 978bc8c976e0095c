import json

import pytest
import torch

pytest.importorskip('huggingface_hub', reason='it comes by the extra hub')
pytest.importorskip('safetensors', reason='it comes by the extra hub')


def test_a_saved_backbone_comes_back_with_its_options(tmp_path):
    from evmamba_mm.hub.mixin import HubEfficientVMamba

    torch.manual_seed(0)
    saved = HubEfficientVMamba('atto', out_indices=(0, 3), step_size=3).eval()
    saved.save_pretrained(tmp_path)
    loaded = HubEfficientVMamba.from_pretrained(tmp_path).eval()
    image = torch.rand(1, 3, 40, 36)
    with torch.no_grad():
        for found, wanted in zip(loaded(image), saved(image), strict=True):
            assert torch.equal(found, wanted)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert (config['arch'], config['step_size']) == ('atto', 3)
    card = (tmp_path / 'README.md').read_text()
    assert 'license: apache-2.0' in card
    assert 'HubEfficientVMamba.from_pretrained("' in card
