"""What devices differ in. Apple's GPU (MPS) has no float64: sums are kept in float32 there, and
what is measured goes to the CPU, where it is measured as anywhere else.

Not run on such hardware; tests/train/test_mps.py has a device that refuses what MPS refuses.
"""

from __future__ import annotations

import torch
from torch import Tensor


def widest(device: torch.device) -> torch.dtype:
    """The widest floating type that this device adds in."""
    return torch.float32 if device.type == "mps" else torch.float64


def measurable(x: Tensor) -> Tensor:
    """The tensor where float64 is: its own device, or the CPU."""
    return x.cpu() if x.device.type == "mps" else x
