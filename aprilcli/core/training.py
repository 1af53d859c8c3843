"""Training a projector: single steps, and the state from which training can resume.

Symbols: B images, S side of the model input in pixels, N stages, C joint width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    ``pixels`` [B, 3, S, S]: normalized. ``text_features`` [B, 2, C]: of each image's object. ``masks`` [B, S, S]: 0
    normal, 1 anomalous.
    """

    pixels: torch.Tensor
    text_features: torch.Tensor
    masks: torch.Tensor


class ProjectorTrainer:
    """Trains a projector on top of a frozen image encoder with Adam; the loss is focal + dice per stage.

    The encoder may compute in half precision; projector, loss and Adam use float32.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        projector: Projector,
        learning_rate: float = LEARNING_RATE,
        further_sizes: Sequence[int] = (),
    ) -> None:
        """Train ``projector`` in place, from its current weights; ``further_sizes``: of batches, in pixels."""
        self.projector = projector.to(encoder.device).requires_grad_(True).train()
        self._encoder = encoder
        self._encoders = {size: encoder.at_size(size) for size in further_sizes} | {encoder.spec.image_size: encoder}
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
        loss = projector_loss(self._stage_maps(batch), batch.masks.to(self._encoder.device))
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        self._optimizer.step()
        return loss.item()

    @torch.no_grad()
    def measure(self, batch: Batch) -> tuple[float, torch.Tensor]:
        """Return the loss without taking a step, and the zero-shot maps [B, S, S] in [0, N] (eq. 3)."""
        stage_maps = self._stage_maps(batch)
        loss = projector_loss(stage_maps, batch.masks.to(self._encoder.device))
        return loss.item(), maps.sum_stages(stage_maps)

    def _stage_maps(self, batch: Batch) -> list[torch.Tensor]:
        size = batch.pixels.shape[-1]
        features = self._encoders[size].encode(batch.pixels.numpy())
        text_features = batch.text_features.to(self._encoder.device)
        # Autograd does not accept tensors created in inference mode; clones are ordinary tensors.
        projected = self.projector(tuple(tokens.clone() for tokens in features.patch_tokens))
        logit_scale = self._encoder.spec.logit_scale
        stage_maps = []
        for tokens, grid in zip(projected, features.grids, strict=True):
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
