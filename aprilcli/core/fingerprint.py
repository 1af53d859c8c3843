"""Fingerprints of model weights: a projector or a bank fits only the model it was made with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

POSITIONS = ("positional_embedding", "pos_embed", "relative_position_bias_table")  # of open_clip, of timm


def fingerprint(weights: Mapping[str, torch.Tensor], architecture: str = "") -> str:
    """Return the SHA-256, hexadecimal, over ``architecture`` and each tensor's name, shape and float32 values."""
    digest = hashlib.sha256(architecture.encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def model_fingerprint(weights: Mapping[str, torch.Tensor], config: Mapping[str, Any], weights_file: Path | None) -> str:
    """Return the fingerprint of a CLIP's ``weights`` and its configuration, independent of the image size.

    The image tower's position embeddings are resized on loading. They are therefore taken from ``weights_file``, or
    left out if it is None.
    """
    positions = [name for name in weights if name.startswith("visual.") and name.endswith(POSITIONS)]
    weights = {name: tensor for name, tensor in weights.items() if name not in positions}
    if weights_file is not None:
        with safe_open(weights_file, framework="pt") as file:
            weights |= {name: file.get_tensor(name) for name in positions if name in file.keys()}  # noqa: SIM118
    # The number of heads and the activation change the model but not the shape of any weight.
    vision = {name: value for name, value in config["vision_cfg"].items() if name != "image_size"}
    architecture = json.dumps({**config, "vision_cfg": vision}, sort_keys=True, default=str)
    return fingerprint(weights, architecture)
