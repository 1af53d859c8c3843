"""Training a projector: single steps, and the state from which training can resume.

Symbols: B images, S side of the model input in pixels, N stages, L = h·w patches, Cv vision width of a stage, C joint
width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from aprilcli.core import maps
from aprilcli.core.encoder import ImageEncoder
from aprilcli.core.losses import projector_loss
from aprilcli.core.projector import Projector
from aprilcli.defaults import LEARNING_RATE
from aprilcli.types import ModelSpec

BETAS = (0.5, 0.999)  # of Adam


@dataclass(frozen=True)
class Batch:
    """The input of a step, float32.

    ``patch_tokens`` N × [B, L, Cv] and their ``grids`` N × (h, w): of the frozen encoder. ``text_features`` [B, 2, C]:
    of each image's object. ``masks`` [B, S, S]: 0 normal, 1 anomalous.
    """

    patch_tokens: tuple[torch.Tensor, ...]
    grids: tuple[tuple[int, int], ...]
    text_features: torch.Tensor
    masks: torch.Tensor


def encode_singly(encoder: ImageEncoder, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the patch tokens N × [B, L, Cv] of prepared images [B, 3, S, S], float32, on the encoder's device.

    Each image has a pass of its own, so that even the last bits do not depend on the other images. Raises ArtifactError
    where a feature is not a finite number.
    """
    singles = [encoder.encode(image.numpy()).patch_tokens for image in torch.split(pixels, 1)]
    return tuple(torch.cat(stage) for stage in zip(*singles, strict=True))


class ProjectorTrainer:
    """Trains a projector on features of a frozen image encoder with Adam; the loss is focal + dice per stage.

    Projector, loss and Adam use float32.
    """

    def __init__(self, projector: Projector, device: torch.device, learning_rate: float = LEARNING_RATE) -> None:
        """Train ``projector`` in place on ``device``, from its current weights."""
        self.projector = projector.to(device).requires_grad_(True).train()
        self._device = device
        self._optimizer = torch.optim.Adam(projector.parameters(), lr=learning_rate, betas=BETAS)
        # As Adam would create it at the first step, so that ``state`` has the same entries before it.
        for weight in projector.parameters():
            self._optimizer.state[weight] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }

    def step(self, batch: Batch) -> float:
        """Take one step and return the loss before it: summed over the stages, averaged over the images."""
        loss = projector_loss(self._stage_maps(batch), batch.masks.to(self._device))
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        self._optimizer.step()
        return loss.item()

    @torch.no_grad()
    def measure(self, batch: Batch) -> tuple[float, torch.Tensor]:
        """Return the loss without taking a step, and the zero-shot maps [B, S, S] in [0, N] (eq. 3)."""
        stage_maps = self._stage_maps(batch)
        loss = projector_loss(stage_maps, batch.masks.to(self._device))
        return loss.item(), maps.sum_stages(stage_maps)

    def _stage_maps(self, batch: Batch) -> list[torch.Tensor]:
        text_features = batch.text_features.to(self._device)
        projected = self.projector(tuple(tokens.to(self._device) for tokens in batch.patch_tokens))
        logit_scale, size = self.projector.spec.logit_scale, batch.masks.shape[-1]
        stage_maps = []
        for tokens, grid in zip(projected, batch.grids, strict=True):
            images = zip(tokens.split(1), text_features, strict=True)
            logits = torch.cat([maps.anomaly_logits(image, text, grid, logit_scale) for image, text in images])
            stage_maps.append(maps.zero_shot_stage_map(logits, size))
        return stage_maps

    def weights(self) -> dict[str, torch.Tensor]:
        """Return copies of the projector's weights, on the CPU."""
        return {name: weight.detach().cpu().clone() for name, weight in self.projector.state_dict().items()}

    def state(self) -> dict[str, torch.Tensor]:
        """Return copies of everything the next step depends on: the weights, and Adam's moments and step counts."""
        state = {f"weight.{name}": weight for name, weight in self.weights().items()}
        for name, weight in self.projector.named_parameters():
            moments = self._optimizer.state[weight]
            state |= {f"{kind}.{name}": moments[kind].detach().cpu().clone() for kind in moments}
        return state

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore a result of ``state``. Raises KeyError or RuntimeError if its names or shapes differ."""
        with torch.no_grad():
            for name, weight in self.projector.named_parameters():
                weight.copy_(state[f"weight.{name}"])
                for kind, moment in self._optimizer.state[weight].items():
                    moment.copy_(state[f"{kind}.{name}"])


def new_projector(spec: ModelSpec, seed: int, trained_on: str = "") -> Projector:
    """Create a projector whose initial weights depend only on ``seed``; PyTorch's global random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Projector(spec, trained_on)
