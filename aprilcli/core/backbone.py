"""A frozen CLIP in PyTorch: its image encoder, its text encoder, and how they are loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.factory import load_state_dict
from open_clip.model import CLIP, CustomTextCLIP, _build_vision_tower, resize_pos_embed
from open_clip.transformer import QuickGELU

from aprilcli.core.catalogue import TINY, Model, find_model
from aprilcli.core.fingerprint import model_fingerprint
from aprilcli.core.model_folder import BROKEN_MODEL, FOLDER_WEIGHTS, native_size
from aprilcli.core.towers import Tower
from aprilcli.errors import ArtifactError, BackboneError, OptionError
from aprilcli.io.hub import check_tokenizer, fetch_clip_weights
from aprilcli.text import first_line
from aprilcli.types import LOGIT_SCALE, ImageFeatures, ModelSpec

SENTENCES_PER_PASS = 128
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchImageEncoder:
    """The image tower of a frozen CLIP in PyTorch (see ``ImageEncoder``); ``images_encoded`` counts its work."""

    def __init__(self, tower: Tower, spec: ModelSpec, device: torch.device, precision: str = "fp32") -> None:
        """Freeze ``tower`` and move it to ``device``; ``precision`` is fp32, or bf16 or fp16 (autocast)."""
        self.spec = spec
        self.device = device
        self.precision = precision
        self.images_encoded = 0
        tower.module.eval().requires_grad_(False)
        tower.to(device)
        self._tower = tower

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """The patches (h, w) of each stage."""
        return tuple(self._tower.grid(stage) for stage in self.spec.stages)

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.float32]) -> ImageFeatures:
        """Encode prepared images [B, 3, S, S] in one pass. Raises ArtifactError where a feature is not finite."""
        batch = torch.as_tensor(pixels).to(self.device)
        self.images_encoded += len(batch)
        with _autocast(self.device, self.precision):
            features, stages = self._tower.encode(batch, self.spec.stages)
        grids = tuple((tokens.shape[-2], tokens.shape[-1]) for tokens in stages)
        image = F.normalize(features.float(), dim=-1)
        patch_tokens = tuple(tokens.float().flatten(2).transpose(1, 2).contiguous() for tokens in stages)
        check_finite((image, *patch_tokens), self.spec.label, self.precision)
        return ImageFeatures(image, patch_tokens, grids)


class TextEncoder:
    """The text tower of a frozen CLIP with its tokenizer."""

    def __init__(
        self, model: torch.nn.Module, tokenizer: Any, label: str, device: torch.device, precision: str = "fp32"
    ) -> None:
        """Freeze ``model``, open_clip's pair of towers, and move it to ``device``; ``label`` names it in errors."""
        self._model: Any = model.eval().requires_grad_(False).to(device)
        self._tokenizer = tokenizer
        self._label = label
        self._device = device
        self._precision = precision

    @torch.inference_mode()
    def encode(self, sentences: list[str]) -> torch.Tensor:
        """Encode sentences to unit rows [len(sentences), C], float32. Raises ArtifactError for NaN."""
        tokens = self._tokenizer(sentences).to(self._device)
        with _autocast(self._device, self._precision):
            parts = [self._encode_tokens(chunk) for chunk in tokens.split(SENTENCES_PER_PASS)]
        features = F.normalize(torch.cat(parts).float(), dim=-1)
        check_finite((features,), self._label, self._precision)
        return features

    def _encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run the text tower only as far as the longest sentence reaches: it is causal, so what follows is unread."""
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


@dataclass(frozen=True)
class Backbone:
    """Both towers of a frozen CLIP; ``notes``: what the user should know of it."""

    encoder: TorchImageEncoder
    text: TextEncoder
    notes: tuple[str, ...] = ()

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.encoder.spec


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


def load_backbone(
    model: str = TINY,
    *,
    image_size: int | None = None,
    stages: tuple[int, ...] | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Backbone:
    """Load both towers of a frozen CLIP.

    ``model``: ``tiny``, ``paper``, an open_clip name with an optional ``:TAG``, or a folder in open_clip's local-dir
    form. ``image_size`` in pixels and ``stages`` (1-based) default to the model's own: four equal parts of a tower's
    depth. Raises OptionError, ArtifactError or BackboneError.
    """
    found = find_model(model)
    source = found.source
    size = found.image_size(image_size)
    resolved_device = resolve_device(device)
    resolved_precision = resolve_precision(precision, resolved_device)
    clip = _create(found, size)
    if not isinstance(clip, CLIP | CustomTextCLIP):
        raise BackboneError(f"{source.name}: only CLIP and SigLIP models can be used; choose another")
    if not all(bool(weights.isfinite().all()) for weights in clip.state_dict().values()):
        raise ArtifactError(f"{source.name}: its weights hold NaN or infinite values; download or copy them again")
    tower = _adapt(found, clip.visual, size)
    chosen = found.stages(stages, tower.depth)
    # A sigmoid head is trained with a scale of its own; its bias cancels in a softmax of two.
    has_sigmoid_head = clip.logit_bias is not None
    spec = ModelSpec(
        backbone=source.name,
        pretrained=source.pretrained,
        activation="quickgelu" if any(isinstance(module, QuickGELU) for module in clip.modules()) else "gelu",
        image_size=size,
        stages=chosen,
        stage_widths=tuple(tower.width(stage) for stage in chosen),
        joint_width=tower.output_width,
        mean=found.mean,
        std=found.std,
        fingerprint=_fingerprint(found, clip.state_dict()),
        logit_scale=float(clip.logit_scale.exp()) if has_sigmoid_head else LOGIT_SCALE,
    )
    text = TextEncoder(clip, _tokenizer(found), spec.label, resolved_device, resolved_precision)
    encoder = TorchImageEncoder(tower, spec, resolved_device, resolved_precision)
    return Backbone(encoder, text, found.notes(spec.activation))


def load_image_encoder(
    model: str, spec: ModelSpec, *, device: str = "auto", precision: str = "auto"
) -> TorchImageEncoder:
    """Load the image tower alone, as ``load_backbone`` would, for a process that gets text features from elsewhere.

    ``spec``: that of the same model, loaded by ``load_backbone``. Raises ArtifactError where the weights of ``model``
    are not those of ``spec``.
    """
    found = find_model(model)
    size = found.image_size(spec.image_size)
    with _loading_errors(found):
        state = load_state_dict(str(_checkpoint(found)))
        if _fingerprint(found, state) != spec.fingerprint:
            raise ValueError(f"its weights are not those of {spec.label}")
        half = _ImageHalf(found, size)
        state = {name: weights for name, weights in state.items() if name.startswith("visual.")}
        resize_pos_embed(state, half)
        half.load_state_dict(state)
    resolved_device = resolve_device(device)
    tower = _adapt(found, half.visual, size)
    return TorchImageEncoder(tower, spec, resolved_device, resolve_precision(precision, resolved_device))


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn ``auto`` into what suits the device: fp16 on a GPU, else fp32."""
    return ("fp16" if device.type == "cuda" else "fp32") if precision == "auto" else precision


def resolve_device(device: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``mps`` into a device of this machine. Raises OptionError."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available.get(device, False):
        present = ", ".join(name for name, is_present in available.items() if is_present)
        raise OptionError(f"device {device}: this machine has no such device; choose from: {present}")
    return torch.device(device)


@contextlib.contextmanager
def _loading_errors(found: Model) -> Iterator[None]:
    try:
        yield
    except (OSError, *BROKEN_MODEL) as error:
        label = found.source.folder or f"{found.source.name}:{found.source.pretrained}"
        raise ArtifactError(
            f"{label}: the model cannot be loaded ({first_line(error)}); download or copy it again"
        ) from error


def _checkpoint(found: Model) -> Path:
    """Return the weights file, downloaded first if it is not on this machine."""
    source = found.source
    if source.folder is not None:
        return source.folder / FOLDER_WEIGHTS
    return fetch_clip_weights(f"{source.name}:{source.pretrained}", str(source.tag.get("hf_hub", "")).rstrip("/"))


def _create(found: Model, image_size: int) -> Any:
    """Build both towers with open_clip and load their weights."""
    source = found.source
    build_size = found.tower.build_size(image_size)
    with _loading_errors(found):
        if source.folder is not None:
            return open_clip.create_model(f"local-dir:{source.folder}", force_image_size=build_size)
        # A path, not the tag: open_clip would ask the hub again, and warn of the paper's activation (see PAPER).
        return open_clip.create_model(source.name, pretrained=str(_checkpoint(found)), force_image_size=build_size)


class _ImageHalf(torch.nn.Module):
    """A model without its text tower, as far as open_clip's functions for loading weights need one."""

    def __init__(self, found: Model, image_size: int) -> None:
        super().__init__()
        vision = {**found.config["vision_cfg"], "timm_model_pretrained": False}
        vision["image_size"] = found.tower.build_size(image_size) or native_size(found.config)
        quick_gelu = bool(found.config.get("quick_gelu", False))
        self.visual: Any = _build_vision_tower(found.config["embed_dim"], vision, quick_gelu)


def _fingerprint(found: Model, weights: dict[str, torch.Tensor]) -> str:
    folder = found.source.folder
    return model_fingerprint(weights, found.config, None if folder is None else folder / FOLDER_WEIGHTS)


def _adapt(found: Model, visual: Any, image_size: int) -> Tower:
    try:
        return found.tower(visual, image_size)
    except ValueError as error:
        raise OptionError(f"image size {image_size}: {found.source.name}: {error}") from error


def _tokenizer(found: Model) -> Any:
    source = found.source
    repository = found.config["text_cfg"].get("hf_tokenizer_name", "")
    if repository and source.folder is None:
        check_tokenizer(f"{source.name}:{source.pretrained}", repository)
    try:
        return open_clip.get_tokenizer(f"local-dir:{source.folder}" if source.folder is not None else source.name)
    except ImportError as error:
        raise BackboneError(
            f"{source.name}: its tokenizer needs the package transformers; install it: pip install "
            "'aprilcli[transformers]'"
        ) from error
    except (OSError, *BROKEN_MODEL) as error:
        raise ArtifactError(
            f"{source.name}: its tokenizer cannot be loaded ({first_line(error)}); put its files into the model "
            "folder, or choose another model"
        ) from error
