"""The backbone on the Hub of Hugging Face: push_to_hub and from_pretrained."""

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError as error:
    raise ImportError(
        'HubEfficientVMamba needs huggingface_hub: '
        'pip install "evmamba_mm[hub]"'
    ) from error

from ..backbones import EfficientVMamba

MODEL_CARD = """\
---
{{ card_data }}
---

# EfficientVMamba backbone

Feature maps of an image by
[EfficientVMamba](https://arxiv.org/abs/2403.09977), from the package
`evmamba_mm`:

```python
from evmamba_mm.hub.mixin import HubEfficientVMamba

backbone = HubEfficientVMamba.from_pretrained({{ repo_id | default("FOLDER") | tojson }})
backbone.eval()(images)  # (B, 3, H, W), normalised as in training
```

`config.json` holds the arguments of the backbone.
"""  # noqa: E501


class HubEfficientVMamba(
    EfficientVMamba,
    PyTorchModelHubMixin,
    library_name='evmamba_mm',
    license='apache-2.0',
    tags=['image-feature-extraction', 'mamba'],
    model_card_template=MODEL_CARD,
):
    """The backbone with ``save_pretrained``, ``from_pretrained`` and more.

    A saved folder, or a repository, has the weights as safetensors, the
    arguments, and a model card. Arguments are those of
    :class:`evmamba_mm.EfficientVMamba`.
    """
