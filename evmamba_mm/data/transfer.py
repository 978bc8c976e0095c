"""Small arrays that reach a device without a wait for it."""

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copies a small array while the device goes on with its work."""
    tensor = torch.from_numpy(values)
    if device.type == 'cuda':
        # A copy from pageable memory would wait.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
