"""Measure a model folder: on drawn kinds that training never drew, and on labelled folders of photos.

    python measure.py MODEL --drawn FOLDER              # a set of `draw.py --kinds held-out`: 1-shot and zero-shot
    python measure.py MODEL --photos OBJECT_FOLDER ...  # MVTec AD's layout: 4-shot and zero-shot

Prints image AUROC / pixel AUROC for the zero-shot scores, the sum of zero-shot and few-shot, and the bank alone.
Pixels are compared at the model's input size, every second one.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from batches import Wear
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from aprilcli.core import maps
from aprilcli.core.backbone import Backbone, load_backbone
from aprilcli.core.nearest import nearest_distance
from aprilcli.core.prompts import encode_prompts

METHODS = ("zero-shot", "sum", "bank")
Table = dict[str, tuple[float, float]]  # image and pixel AUROC by method
Sample = tuple[np.ndarray, np.ndarray]  # picture uint8 [H, W, 3], mask [H, W]


class Scores:
    """Scores and maps of one object, per method, against labels and masks."""

    def __init__(self) -> None:
        """Begin empty."""
        self.labels: list[bool] = []
        self.masks: list[np.ndarray] = []
        self.images: dict[str, list[float]] = defaultdict(list)
        self.maps: dict[str, list[np.ndarray]] = defaultdict(list)

    def extend(self, other: "Scores") -> None:
        """Take over the pictures of another object."""
        self.labels += other.labels
        self.masks += other.masks
        for method in METHODS:
            self.images[method] += other.images[method]
            self.maps[method] += other.maps[method]

    def auroc(self) -> Table:
        """Image and pixel AUROC of each method."""
        truth = np.concatenate([m.ravel() for m in self.masks])
        return {
            method: (
                float(roc_auc_score(self.labels, self.images[method])),
                float(roc_auc_score(truth, np.concatenate([m.ravel() for m in self.maps[method]]))),
            )
            for method in METHODS
        }


class Judge:
    """A model folder with its projector, scoring by all three methods at once."""

    def __init__(self, folder: Path, image_size: int | None = None) -> None:
        """Load the folder; `image_size` in pixels, else the model's own."""
        self.backbone: Backbone = load_backbone(str(folder), image_size=image_size, device="cpu")
        weights = load_file(folder / "projector.safetensors")
        self.projector = [(weights[f"fc.{n}.weight"], weights[f"fc.{n}.bias"]) for n in range(4)]
        self.size = self.backbone.spec.image_size

    def pixels(self, image: np.ndarray) -> torch.Tensor:
        """Squash and normalise one picture, [1, 3, S, S]."""
        squashed = Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BICUBIC)
        unit = torch.from_numpy(np.array(squashed)).permute(2, 0, 1)[None].float() / 255
        spec = self.backbone.spec
        return (unit - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)

    def bank(self, images: list[np.ndarray]) -> list[torch.Tensor]:
        """Unit tokens [K·L, Cn] of each stage."""
        features = self.backbone.encode(torch.cat([self.pixels(image) for image in images]))
        return [F.normalize(tokens.flatten(0, 1), dim=-1) for tokens in features.patch_tokens]

    @torch.inference_mode()
    def add(self, scores: Scores, sample: Sample, text: torch.Tensor, bank: list[torch.Tensor]) -> None:
        """Score one picture."""
        image, mask = sample
        features = self.backbone.encode(self.pixels(image))
        size = self.size
        logits = (
            maps.anomaly_logits(F.linear(tokens, *layer), text, grid)
            for tokens, layer, grid in zip(features.patch_tokens, self.projector, features.grids, strict=True)
        )
        distances = (
            nearest_distance(tokens, rows).reshape(1, *grid)
            for tokens, rows, grid in zip(features.patch_tokens, bank, features.grids, strict=True)
        )
        zero_shot = maps.zero_shot_map(logits, self.size)[0]
        few_shot = maps.few_shot_map(distances, self.size)[0]
        score = float(maps.text_score(features.image, text))
        total = zero_shot + few_shot
        for method, value, anomaly_map in (
            ("zero-shot", score, zero_shot),
            ("sum", score + float(total.max()), total),
            ("bank", float(few_shot.max()), few_shot),
        ):
            scores.images[method].append(value)
            scores.maps[method].append(anomaly_map[::2, ::2].half().numpy())
        scores.labels.append(bool(mask.any()))
        squashed = Image.fromarray((mask > 0).astype(np.uint8) * 255).resize((size, size), Image.Resampling.BILINEAR)
        scores.masks.append((np.asarray(squashed) > 127)[::2, ::2])


def drawn(judge: Judge, folder: Path, products: int, worn: bool) -> tuple[dict[str, Table], dict[str, Table]]:
    """Score drawn products, one reference each: the mean of AUROC within a product, and of all products together.

    Both by kind. The first good picture of a product is its reference, the others are scored. `worn` adds specks,
    streaks and uneven light to all of them.
    """
    images, masks = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "masks"))
    about = json.loads((folder / "products.json").read_text())[:products]
    within: dict[str, list[Table]] = defaultdict(list)
    together: dict[str, Scores] = defaultdict(Scores)
    for number, facts in enumerate(about):
        kind, own = facts["kind"], Scores()
        text = encode_prompts(judge.backbone, kind)
        pictures = images[number]
        if worn:
            rng = np.random.default_rng(number)
            wear = Wear.draw(rng, pictures.shape[1])
            added = np.stack([127.5 * wear.paint(rng, pictures.shape[1]) for _ in pictures])
            pictures = np.clip(pictures + added, 0, 255).astype(np.uint8)
        bank = judge.bank([pictures[0]])
        for index in range(1, len(pictures)):
            judge.add(own, (pictures[index], masks[number, index]), text, bank)
        within[kind].append(own.auroc())
        together[kind].extend(own)
    return (
        {kind: mean(tables) for kind, tables in within.items()},
        {kind: scores.auroc() for kind, scores in together.items()},
    )


def _photos(folder: Path) -> Iterator[Sample]:
    for path in sorted(folder.glob("test/*/*")):
        image = np.asarray(Image.open(path).convert("RGB"))
        mask_path = folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        good = path.parent.name == "good"
        mask = np.zeros(image.shape[:2]) if good else np.asarray(Image.open(mask_path).convert("L"))
        yield image, mask


def photos(judge: Judge, folder: Path, k_shot: int = 4) -> Table:
    """One object folder; the references are drawn from its good training photos with seed 0."""
    good = sorted(folder.glob("train/good/*"))
    picked = np.random.default_rng(0).choice(len(good), k_shot, replace=False)
    bank = judge.bank([np.asarray(Image.open(good[k]).convert("RGB")) for k in picked])
    text, scores = encode_prompts(judge.backbone, folder.name), Scores()
    for sample in _photos(folder):
        judge.add(scores, sample, text, bank)
    return scores.auroc()


def show(name: str, result: Table) -> None:
    """One line: the three methods' image / pixel AUROC."""
    print(f"{name:16}", "  ".join(f"{m} {result[m][0]:.3f}/{result[m][1]:.3f}" for m in METHODS), flush=True)


def mean(results: list[Table]) -> Table:
    """The mean over objects or kinds."""
    table = {m: np.mean([r[m] for r in results], axis=0) for m in METHODS}
    return {m: (float(image), float(pixel)) for m, (image, pixel) in table.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--drawn", type=Path)
    parser.add_argument("--worn", action="store_true")
    parser.add_argument("--products", type=int, default=10**6)
    parser.add_argument("--photos", type=Path, nargs="*", default=[])
    parser.add_argument("--image-size", type=int)
    chosen = parser.parse_args()
    judge = Judge(chosen.model, chosen.image_size)
    if chosen.drawn:
        within, together = drawn(judge, chosen.drawn, chosen.products, chosen.worn)
        for kind, result in within.items():
            show(kind, result)
        show("within a product", mean(list(within.values())))
        show("all together", mean(list(together.values())))
    measured = []
    for folder in chosen.photos:
        measured.append(photos(judge, folder))
        show(folder.name, measured[-1])
    if len(measured) > 1:
        show("mean", mean(measured))
