"""Turn a training checkpoint into the files of the embedded model.

    python export.py CHECKPOINT.pt FOLDER

Writes open_clip_config.json, open_clip_model.safetensors (half precision) and projector.safetensors.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from train_clip import Model

from aprilcli.core.model_folder import FOLDER_CONFIG, FOLDER_WEIGHTS
from aprilcli.core.model_loading import STAGE_COUNT, load_backbone
from aprilcli.core.projector import FOLDER_PROJECTOR, Projector, save_projector

PREPROCESSING = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}
CREATED = "2026-11-24T00:00:00Z"  # fixed, so that equal weights give equal bytes


def export(checkpoint: Path, folder: Path) -> None:
    """Write the three files."""
    saved = torch.load(checkpoint)
    model = Model(saved["config"])
    model.load_state_dict(saved["model"])
    weights: dict[str, torch.Tensor] = model.clip.state_dict()
    clip = {name: t.half() if t.is_floating_point() else t for name, t in weights.items() if name != "attn_mask"}
    folder.mkdir(parents=True, exist_ok=True)
    described = {"model_cfg": saved["config"], "preprocess_cfg": PREPROCESSING}
    (folder / FOLDER_CONFIG).write_text(json.dumps(described, indent=2) + "\n")
    save_file({name: t.contiguous() for name, t in sorted(clip.items())}, folder / FOLDER_WEIGHTS)

    projector = Projector(load_backbone(str(folder), device="cpu").spec, trained_on="images drawn by this project")
    layers = {}
    for n in range(STAGE_COUNT):
        layers[f"fc.{n}.weight"], layers[f"fc.{n}.bias"] = model.projection(n)
    projector.load_state_dict(layers)
    save_projector(projector, folder / FOLDER_PROJECTOR, created=CREATED)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    export(chosen.checkpoint, chosen.folder)
