"""The device and the precision that a model runs with."""

from __future__ import annotations

import torch

from aprilcli.errors import OptionError


def resolve_device(device: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``mps`` into an available device. Raises OptionError."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available.get(device, False):
        present = ", ".join(name for name, is_available in available.items() if is_available)
        raise OptionError(f"device {device}: this machine has no such device; it has {present}")
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn ``auto`` into fp16 on a CUDA device, fp32 elsewhere."""
    return ("fp16" if device.type == "cuda" else "fp32") if precision == "auto" else precision
