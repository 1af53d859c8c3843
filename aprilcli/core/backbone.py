"""The two encoders of a frozen CLIP in PyTorch: of images and of text."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.model import CLIP

from aprilcli.core.device import TORCH
from aprilcli.core.encoder import ImageEncoder
from aprilcli.core.towers import Tower
from aprilcli.errors import ArtifactError, OptionError
from aprilcli.text import printable
from aprilcli.types import WINDOWS, ImageFeatures, ModelSpec, Views

SENTENCES_PER_PASS = 128
VISUAL = "visual."  # starts the names of the image tower's weights
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchImageEncoder:
    """The image tower of a frozen CLIP in PyTorch (see ``ImageEncoder``); ``tower``: at the size of ``spec``."""

    engine = TORCH
    quantization = None

    def __init__(self, tower: Tower, spec: ModelSpec, device: torch.device, precision: str = "fp32") -> None:
        """Freeze ``tower``, at its native size, and move it to ``device``; ``spec`` says which size to use.

        ``precision`` is fp32, or bf16 or fp16 (autocast).
        """
        self.spec = spec
        self.device = device
        self.precision = precision
        self._native = tower
        tower.place(device)
        self.tower = tower.at_size(spec.image_size)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """The patches (h, w) of each stage."""
        return tuple(map(self.tower.grid, self.spec.stages))

    @property
    def has_windows(self) -> bool:
        """Whether the features of windows can be encoded."""
        return self.tower.has_windows

    @property
    def window_sides(self) -> tuple[int, ...]:
        """The sides of ``WINDOWS`` that fit into the last grid."""
        return tuple(side for side in WINDOWS if side <= min(self.tower.grid(self.tower.depth)))

    def at_size(self, image_size: int) -> TorchImageEncoder:
        """Return an encoder with the same weights for inputs of another size, in pixels."""
        return TorchImageEncoder(self._native, replace(self.spec, image_size=image_size), self.device, self.precision)

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.float32], *, windows: bool = False) -> ImageFeatures:
        """Encode prepared images [B, 3, S, S] in one pass.

        Patch tokens are the raw output of each stage, without class token and final layer norm (see ``towers`` for
        what a stage is). Raises ArtifactError where a feature is not a finite number.
        """
        batch = torch.as_tensor(pixels).to(self.device)
        with _autocast(self.device, self.precision):
            features, outputs = self.tower.encode(batch, self.spec.stages)
            of_windows = [self.tower.windows(batch, side) for side in (self.window_sides if windows else ())]
        grids = tuple((tokens.shape[-2], tokens.shape[-1]) for tokens in outputs)
        image = F.normalize(features.float(), dim=-1)
        patch_tokens = tuple(tokens.float().flatten(2).transpose(1, 2).contiguous() for tokens in outputs)
        unit_windows = tuple(F.normalize(side.float(), dim=-1) for side in of_windows)
        check_finite((image, *patch_tokens, *unit_windows), self.spec.label, self.precision)
        return ImageFeatures(image, patch_tokens, grids, unit_windows)


class TextEncoder:
    """The text tower of a frozen CLIP with its tokenizer; both are made ready when they are first used.

    ``inputs``: what the features of a sentence depend on, in JSON types. ``device``: where the features are.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        load_tokenizer: Callable[[], Any],
        label: str,
        device: torch.device,
        precision: str = "fp32",
        inputs: Mapping[str, Any] = MappingProxyType({}),
        is_unchanged: Callable[[], bool] = lambda: True,
    ) -> None:
        """Use ``model``, open_clip's pair of towers, whose weights may be mapped from a file until the first use.

        ``label`` names the model in errors. ``inputs``: what describes the weights and the tokenizer.
        ``is_unchanged``: whether the file is still the one that was loaded.
        """
        self.device = device
        self.precision = precision
        self._untouched = model
        self._load_tokenizer = load_tokenizer
        self._label = label
        self._inputs = inputs
        self._is_unchanged = is_unchanged

    @property
    def inputs(self) -> dict[str, Any]:  # noqa: D102
        cuda = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return {
            **self._inputs,
            "precision": self.precision,
            "device": [self.device.type, cuda],
            # With other threads or registers, sums differ in their last bits.
            "threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
        }

    @functools.cached_property
    def _model(self) -> Any:
        move_weights(self._untouched, self.device, lambda name: not name.startswith(VISUAL))
        if not self._is_unchanged():
            raise ArtifactError(f"{self._label}: its weights file was changed while it was being loaded; start again")
        return self._untouched.eval().requires_grad_(False)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return self._load_tokenizer()

    @torch.inference_mode()
    def encode(self, sentences: list[str]) -> torch.Tensor:
        """Encode sentences to unit rows [len(sentences), C], float32.

        Raises OptionError for a sentence of more tokens than the tower reads, ArtifactError where a feature is not a
        finite number, the weights file has been changed, or the tokenizer cannot be loaded or is another model's.
        """
        tokens = self._tokenize(sentences).to(self.device)
        with _autocast(self.device, self.precision):
            parts = [self._encode_tokens(chunk) for chunk in torch.split(tokens, SENTENCES_PER_PASS)]
        features = F.normalize(torch.cat(parts).float(), dim=-1)
        check_finite((features,), self._label, self.precision)
        return features

    def _tokenize(self, sentences: list[str]) -> torch.Tensor:
        context = self._model.context_length
        tokens: torch.Tensor = self._tokenizer(sentences)
        if int(tokens.max()) >= self._model.vocab_size:
            raise ArtifactError(
                f"{self._label}: its tokenizer has more words than its text tower; copy this model's own tokenizer"
            )
        # Tokenizers truncate silently: compare with a context twice as long, where the rest must be padding.
        whole = self._tokenizer(sentences, context_length=2 * context)
        if truncated := [sentence for sentence, same in zip(sentences, _same(tokens, whole), strict=True) if not same]:
            raise OptionError(
                f"{printable(truncated[0])[:80]!r}: more than the {context} tokens that {self._label} reads; "
                "use a shorter object name"
            )
        return tokens

    def _encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encode tokens [B, context]; a causal tower runs only as far as the longest sentence reaches."""
        model = self._model
        length = int(tokens.argmax(dim=-1).max()) + 1
        features: torch.Tensor
        if not isinstance(model, CLIP) or model.text_pool_type != "argmax" or model.attn_mask is None:
            features = model.encode_text(tokens)
            return features
        shortened = {
            "positional_embedding": model.positional_embedding[:length],
            "attn_mask": model.attn_mask[:length, :length],
        }
        output = torch.func.functional_call(model, shortened, (None, tokens[:, :length]))
        features = output["text_features"] if isinstance(output, dict) else output[1]
        return features  # typed above: open_clip is not


def _same(tokens: torch.Tensor, whole: torch.Tensor) -> list[bool]:
    """Return for each row whether ``whole`` is ``tokens`` and padding."""
    context = tokens.shape[1]
    same = (whole[:, :context] == tokens).all(dim=1) & (whole[:, context:] == whole[:, -1:]).all(dim=1)
    return [bool(row) for row in same]


@dataclass(frozen=True)
class Backbone:
    """Both towers of a frozen CLIP.

    ``views``: the inputs to use of each image; the size of ``encoder`` is the first. ``notes``: what the user should
    know about the model.
    """

    encoder: ImageEncoder
    text: TextEncoder
    views: Views
    notes: tuple[str, ...] = ()

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.encoder.spec


def move_weights(model: torch.nn.Module, device: torch.device, chosen: Callable[[str], bool]) -> None:
    """Copy the parameters and buffers of these names to ``device``, also from the CPU to the CPU.

    So they are no longer mapped from a file, which another process may change or truncate.
    """
    for name, weights in (*model.named_parameters(), *model.named_buffers()):
        if chosen(name):
            weights.data = weights.data.to(device, copy=True)


def check_finite(values: tuple[torch.Tensor, ...], label: str, precision: str) -> None:
    """Raise ArtifactError for NaN or infinite features of model ``label``: finite weights may overflow too."""
    if not all(tensor.isfinite().all() for tensor in values):
        raise ArtifactError(
            f"{label}: this model gives NaN at precision {precision}; use fp32, or download or copy its weights again"
        )


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[precision])
