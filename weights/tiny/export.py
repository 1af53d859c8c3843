"""Turn a training checkpoint into the embedded model's files.

    python export.py CHECKPOINT.pt FOLDER

FOLDER gets open_clip_config.json, open_clip_model.safetensors (half precision) and projector.safetensors.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from train_clip import STAGES, Model

from aprilcli.core.backbone import load_backbone
from aprilcli.core.projector import Projector, save_projector

PREPROCESSING = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}
MADE = "2026-11-24T00:00:00Z"  # fixed, so that a rebuilt file has the same bytes


def export(checkpoint: Path, folder: Path, image_size: int | None = None) -> None:
    """Write the three files; the pool's positions are all zero, so the native size is free to choose."""
    saved = torch.load(checkpoint)
    config = saved["config"]
    model = Model(config)
    model.load_state_dict(saved["model"])
    clip = model.clip.state_dict()
    if image_size:
        config["vision_cfg"]["image_size"] = image_size
        width = clip["visual.attnpool.positional_embedding"].shape[1]
        clip["visual.attnpool.positional_embedding"] = torch.zeros((image_size // 32) ** 2 + 1, width)
    clip = {name: t.half() if t.is_floating_point() else t for name, t in clip.items() if name != "attn_mask"}
    folder.mkdir(parents=True, exist_ok=True)
    described = {"model_cfg": config, "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
    save_file({name: t.contiguous() for name, t in sorted(clip.items())}, folder / "open_clip_model.safetensors")

    projector = Projector(load_backbone(str(folder), device="cpu").spec, trained_on="pictures drawn by this project")
    layers = {}
    for n in range(STAGES):
        layers[f"fc.{n}.weight"], layers[f"fc.{n}.bias"] = model.projection(n)
    projector.load_state_dict(layers)
    save_projector(projector, folder / "projector.safetensors", created=MADE)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    export(chosen.checkpoint, chosen.folder)
