"""The engine, the device and the precision that a model runs with."""

from __future__ import annotations

import importlib.util

import torch

from aprilcli.errors import OptionError

TORCH, OPENVINO = "torch", "openvino"
# A bank made in one of these, with either engine, can be used with the other: distances differ by less than 1e-3.
INTERCHANGEABLE = {"fp32", "fp16"}


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
    """Turn ``auto`` into fp16 on a CUDA device, fp32 elsewhere. Raises OptionError for int8, which PyTorch lacks."""
    if precision == "int8":
        raise OptionError("precision int8: only the engine openvino computes in it; use that engine, or fp32")
    return ("fp16" if device.type == "cuda" else "fp32") if precision == "auto" else precision


def resolve(engine: str, device: str, precision: str) -> tuple[torch.device, str]:
    """Return the device and the precision that an engine runs with. Raises OptionError where it cannot."""
    if engine == TORCH:
        resolved = resolve_device(device)
        return resolved, resolve_precision(precision, resolved)
    if engine != OPENVINO:
        raise OptionError(f"engine {engine}: unknown; choose {TORCH} or {OPENVINO}")
    if device not in ("auto", "cpu"):
        raise OptionError(f"device {device}: the engine openvino runs on the CPU; use cpu, or the engine torch")
    if precision == "fp16":
        raise OptionError("precision fp16: the engine openvino does not compute in it on a CPU; use fp32 or int8")
    missing = [name for name in (OPENVINO, *(["nncf"] if precision == "int8" else [])) if not is_installed(name)]
    if missing:
        raise OptionError(f"the engine openvino needs {' and '.join(missing)}; run: pip install 'aprilcli[openvino]'")
    return torch.device("cpu"), "fp32" if precision == "auto" else precision


def is_installed(package: str) -> bool:
    """Return whether a package is installed, without importing it."""
    return importlib.util.find_spec(package) is not None


def is_interchangeable(own: tuple[str, str | None], other: tuple[str, str]) -> bool:
    """Return whether features of two engines and precisions may be compared; ``own`` has None in earlier banks."""
    if own[1] is None:
        return other[1] != "int8"
    return own == other or {own[1], other[1]} <= INTERCHANGEABLE


def engine_for_bank(
    own: tuple[str, str | None], engine: str | None, device: str, precision: str
) -> tuple[str, str, str]:
    """Return the engine and the precision to use with a bank, and a note for the user (empty for none).

    ``own``: those that the bank was made with; they are used where ``engine`` is None and ``precision`` is auto. A
    float32 bank is used with PyTorch if its engine is not installed, or does not run on ``device`` or in ``precision``.
    """
    own_engine, own_precision = own
    if precision == "auto" and own_precision is not None and own_precision not in INTERCHANGEABLE:
        precision = own_precision
    if engine is not None or own_engine == TORCH or precision in ("bf16", "int8"):
        return engine or own_engine, precision, ""
    if device not in ("auto", "cpu") or precision == "fp16":
        return TORCH, precision, ""
    if is_installed(own_engine):
        return own_engine, precision, ""
    return TORCH, precision, f"the bank was made with the engine {own_engine}, which is not installed: using {TORCH}"
