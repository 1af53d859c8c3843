"""Training a projector: a step, and the state from which the next one can go on.

Symbols: B pictures, S model input side in pixels, N stages, C joint width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from aprilcli.core import maps
from aprilcli.core.encoder import ImageEncoder
from aprilcli.core.losses import projector_loss
from aprilcli.core.projector import Projector
from aprilcli.types import ModelSpec

LEARNING_RATE = 1e-3
BETAS = (0.5, 0.999)  # of Adam


@dataclass(frozen=True)
class Batch:
    """What a step sees, float32.

    ``pixels`` [B, 3, S, S] normalised; ``text_features`` [B, 2, C], of each picture's object; ``masks`` [B, S, S]
    holds 0 and 1, 1 anomalous.
    """

    pixels: torch.Tensor
    text_features: torch.Tensor
    masks: torch.Tensor


class ProjectorTrainer:
    """Adam on a projector, on top of a frozen image encoder; focal + dice per stage.

    The encoder may compute in half precision; projector, loss and Adam are float32.
    """

    def __init__(self, encoder: ImageEncoder, projector: Projector, learning_rate: float = LEARNING_RATE) -> None:
        """Train ``projector``, in place, from the weights it has."""
        self.projector = projector.to(encoder.device).requires_grad_(True).train()
        self._encoder = encoder
        self._optimiser = torch.optim.Adam(projector.parameters(), lr=learning_rate, betas=BETAS)
        # What Adam would make at its first step: with it, the state looks the same at any time.
        for weight in projector.parameters():
            self._optimiser.state[weight] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }

    def step(self, batch: Batch) -> float:
        """Take one step and return the loss before it: the sum over the stages, mean over the pictures."""
        loss = projector_loss(self._stage_maps(batch), batch.masks.to(self._encoder.device))
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._optimiser.step()
        return loss.item()

    @torch.no_grad()
    def measure(self, batch: Batch) -> tuple[float, torch.Tensor]:
        """Return the loss, without a step, and the zero-shot maps [B, S, S] in [0, N] (eq. 3)."""
        stage_maps = self._stage_maps(batch)
        loss = projector_loss(stage_maps, batch.masks.to(self._encoder.device))
        return loss.item(), torch.stack(stage_maps).sum(dim=0)

    def _stage_maps(self, batch: Batch) -> list[torch.Tensor]:
        features = self._encoder.encode(batch.pixels.numpy())
        text_features = batch.text_features.to(self._encoder.device)
        # Clones, as autograd does not take what was made in inference mode.
        projected = self.projector(tuple(tokens.clone() for tokens in features.patch_tokens))
        spec = self._encoder.spec
        stage_maps = []
        for tokens, grid in zip(projected, features.grids, strict=True):
            pictures = zip(tokens.split(1), text_features, strict=True)
            logits = torch.cat([maps.anomaly_logits(one, text, grid, spec.logit_scale) for one, text in pictures])
            stage_maps.append(maps.zero_shot_stage_map(logits, spec.image_size))
        return stage_maps

    def weights(self) -> dict[str, torch.Tensor]:
        """Return copies of the projector's weights, on the CPU."""
        return {name: weight.detach().cpu().clone() for name, weight in self.projector.state_dict().items()}

    def state(self) -> dict[str, torch.Tensor]:
        """Return copies of all that the next step depends on: weights and Adam's moments and step counts."""
        state = {f"weight.{name}": weight for name, weight in self.weights().items()}
        for name, weight in self.projector.named_parameters():
            moments = self._optimiser.state[weight]
            state |= {f"{kind}.{name}": moments[kind].detach().cpu().clone() for kind in moments}
        return state

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go back to a ``state()`` of the same shapes. Raises KeyError or RuntimeError for another one."""
        with torch.no_grad():
            for name, weight in self.projector.named_parameters():
                weight.copy_(state[f"weight.{name}"])
                for kind, moment in self._optimiser.state[weight].items():
                    moment.copy_(state[f"{kind}.{name}"])


def new_projector(spec: ModelSpec, seed: int, trained_on: str = "") -> Projector:
    """Make a projector whose first weights depend on ``seed`` alone; PyTorch's own random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Projector(spec, trained_on)
