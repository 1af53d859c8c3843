"""The frozen CLIP: which one, loaded how, and the one pass that gives everything. The only import of open_clip."""

from __future__ import annotations

import contextlib
import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import QuickGELU, VisionTransformer
from safetensors import safe_open

from aprilcli.core.fingerprint import model_fingerprint
from aprilcli.core.model_folder import (
    BROKEN_MODEL,
    FOLDER_CONFIG,
    FOLDER_WEIGHTS,
    RESNET_STRIDE,
    as_artifact_errors,
    native_size,
    read_configuration,
)
from aprilcli.errors import ArtifactError, BackboneError, OptionError
from aprilcli.io.hub import fetch_clip_weights
from aprilcli.text import first_line, printable
from aprilcli.types import CONTROL, MAX_IMAGE_SIZE, ImageFeatures, ModelSpec

TINY = "tiny"
PAPER = "paper"
# The authors build the 518-pixel tower from the plain configuration, so OpenAI's QuickGELU weights run with GELU.
# Every number of the paper, and both published projectors, stand on that.
PAPER_BACKBONE, PAPER_PRETRAINED = "ViT-L-14-336", "openai"
PAPER_IMAGE_SIZE = 518  # pixels
PAPER_STAGES = (6, 12, 18, 24)

STAGE_COUNT = 4
SENTENCES_PER_PASS = 128
ROOM_FOR_POSITIONS = 10_000_000  # weights that a configuration may declare beyond those in its file
UNUSABLE = "only CLIP models with open_clip's own ViT or ResNet tower can be used; choose another"
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def tiny_folder() -> Path:
    """Return the embedded model's folder: inside the installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "weights" / TINY
    return inside if inside.is_dir() else package.parent / "weights" / TINY


class TorchImageEncoder:
    """The image tower of a frozen CLIP in PyTorch (see ``ImageEncoder``); ``images_encoded`` counts its work."""

    def __init__(self, visual: torch.nn.Module, spec: ModelSpec, device: torch.device, precision: str = "fp32") -> None:
        """Freeze ``visual`` and move it to ``device``; ``precision`` is fp32, or bf16 or fp16 (autocast)."""
        self.spec = spec
        self.device = device
        self.precision = precision
        self.images_encoded = 0
        self._visual: Any = visual.eval().requires_grad_(False).to(device)
        self._is_resnet = isinstance(visual, ModifiedResNet)
        if self._is_resnet:
            self._visual.to(memory_format=torch.channels_last)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """The patches (h, w) of each stage."""
        if self._is_resnet:
            cells = (self.spec.image_size * 2 ** (STAGE_COUNT - stage) // RESNET_STRIDE for stage in self.spec.stages)
            return tuple((side, side) for side in cells)
        height, width = self._visual.grid_size
        return ((int(height), int(width)),) * len(self.spec.stages)

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.float32]) -> ImageFeatures:
        """Encode prepared images [B, 3, S, S] in one pass.

        Stage n of a ViT is the raw output of block n (1-based): no final layer norm, no class token. Stage n of a
        ResNet is the output of layer n. Raises ArtifactError where a feature is not a finite number.
        """
        batch = torch.as_tensor(pixels).to(self.device)
        if self._is_resnet:
            batch = batch.contiguous(memory_format=torch.channels_last)
        self.images_encoded += len(batch)
        with _autocast(self.device, self.precision):
            output = self._visual.forward_intermediates(batch, indices=self._block_indices(), output_fmt="NCHW")
        # A ResNet is asked for all five outputs, stem first: with fewer, open_clip would pool an earlier layer.
        intermediates = output["image_intermediates"]
        if self._is_resnet:
            intermediates = [intermediates[stage] for stage in self.spec.stages]
        grids = tuple((tokens.shape[-2], tokens.shape[-1]) for tokens in intermediates)
        image = F.normalize(output["image_features"].float(), dim=-1)
        patch_tokens = tuple(tokens.float().flatten(2).transpose(1, 2).contiguous() for tokens in intermediates)
        check_finite((image, *patch_tokens), self.spec.label, self.precision)
        return ImageFeatures(image, patch_tokens, grids)

    def _block_indices(self) -> list[int]:
        return list(range(5)) if self._is_resnet else [stage - 1 for stage in self.spec.stages]


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


@dataclass(frozen=True)
class _Source:
    """Where a backbone comes from: open_clip's name and tag, or a folder."""

    name: str
    pretrained: str = ""
    folder: Path | None = None
    image_size: int | None = None
    stages: tuple[int, ...] | None = None


def load_backbone(
    model: str = TINY,
    *,
    image_size: int | None = None,
    stages: tuple[int, ...] | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Backbone:
    """Load a frozen CLIP.

    ``model``: ``tiny``, ``paper``, an open_clip name with an optional ``:TAG``, or a folder in open_clip's local-dir
    form. ``image_size`` in pixels and ``stages`` (1-based) default to the model's own: four equal parts of a ViT,
    the four layers of a ResNet. Raises OptionError, ArtifactError or BackboneError.
    """
    source = _find_source(model)
    config, preprocessing = _configuration(source)
    if "timm_model_name" in config["vision_cfg"]:
        raise BackboneError(f"{source.name}: {UNUSABLE}")
    is_resnet = isinstance(config["vision_cfg"].get("layers"), list)
    size = image_size or source.image_size or native_size(config)
    _check_image_size(source.name, config, size, is_resnet)
    resolved_device = resolve_device(device)
    resolved_precision = ("fp16" if resolved_device.type == "cuda" else "fp32") if precision == "auto" else precision
    clip = _create(source, size, is_resnet, preprocessing)
    visual = clip.visual
    if not all(bool(weights.isfinite().all()) for weights in clip.state_dict().values()):
        raise ArtifactError(f"{source.name}: its weights hold NaN or infinite values; fetch or copy it anew")
    if not isinstance(clip, CLIP | CustomTextCLIP) or not isinstance(visual, VisionTransformer | ModifiedResNet):
        raise BackboneError(f"{source.name}: {UNUSABLE}")
    if isinstance(visual, ModifiedResNet):
        _resize_attention_pool(visual, size)
    depth = STAGE_COUNT if is_resnet else len(visual.transformer.resblocks)
    chosen = _check_stages(source.name, stages or source.stages or _default_stages(depth), depth)
    spec = ModelSpec(
        backbone=source.name,
        pretrained=source.pretrained,
        activation="quickgelu" if any(isinstance(module, QuickGELU) for module in clip.modules()) else "gelu",
        image_size=size,
        stages=chosen,
        stage_widths=_stage_widths(visual, chosen),
        joint_width=int(visual.output_dim),
        mean=tuple(map(float, preprocessing["mean"])),  # type: ignore[arg-type]  # three channels
        std=tuple(map(float, preprocessing["std"])),  # type: ignore[arg-type]
        fingerprint=model_fingerprint(clip, config, source.folder and source.folder / FOLDER_WEIGHTS),
    )
    text = TextEncoder(clip, _tokenizer(source), spec.label, resolved_device, resolved_precision)
    encoder = TorchImageEncoder(clip.visual, spec, resolved_device, resolved_precision)
    return Backbone(encoder, text, _activation_notes(source, spec))


def resolve_device(device: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``mps`` into a device that is there. Raises OptionError."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available.get(device, False):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise OptionError(f"--device {device}: this machine has no such device; it has {there}")
    return torch.device(device)


def _find_source(model: str) -> _Source:
    if model == TINY:
        return _Source(TINY, folder=tiny_folder())
    if model == PAPER:
        return _Source(PAPER_BACKBONE, PAPER_PRETRAINED, image_size=PAPER_IMAGE_SIZE, stages=PAPER_STAGES)
    if is_there(model) and Path(model).is_dir():
        folder = Path(model).resolve()
        if CONTROL.search(str(folder)):  # banks and projectors keep it
            raise BackboneError(f"{printable(folder)}: a model folder's path needs printable UTF-8; rename it")
        return _Source(folder.name, folder=Path(model))
    name, _, tag = model.partition(":")
    if name not in open_clip.list_models():
        raise BackboneError(
            f"unknown model {printable(model)[:80]}: neither a folder nor an open_clip name; use tiny, paper, a folder "
            f"with {FOLDER_CONFIG} and {FOLDER_WEIGHTS}, or a name such as ViT-B-16:laion2b_s34b_b88k"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        there = ", ".join(tags) or "none"
        raise BackboneError(f"{name} has no pretrained weights {printable(tag)[:80]}; there are: {there}")
    if not tags:
        raise BackboneError(f"open_clip has no pretrained weights for {name}; choose another name or give a folder")
    return _Source(name, tag or _matching_tag(name, tags))


def is_there(name: str) -> bool:
    """Say whether a model's or projector's name is a path that exists, however odd the name."""
    try:
        return Path(name).exists()
    except OSError:  # too long, or below a folder that cannot be read
        return False


def _matching_tag(name: str, tags: list[str]) -> str:
    """Choose the first weights that were trained with the activation of the configuration they run in."""
    quick = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    return next((t for t in tags if _tag_config(name, t).get("quick_gelu", False) == quick), tags[0])


def _tag_config(name: str, tag: str) -> dict[str, Any]:
    return dict(open_clip.get_pretrained_cfg(name, tag))


def _activation_notes(source: _Source, spec: ModelSpec) -> tuple[str, ...]:
    if source.folder == tiny_folder():
        return (f"model: {TINY}, the small embedded one; --model {PAPER} is the accurate one",)
    is_paper = (source.name, source.pretrained) == (PAPER_BACKBONE, PAPER_PRETRAINED)
    if is_paper or not source.pretrained:
        return ()
    trained = "quickgelu" if _tag_config(source.name, source.pretrained).get("quick_gelu", False) else "gelu"
    if trained == spec.activation:
        return ()
    return (f"{source.name}:{source.pretrained} was trained with {trained} but runs with {spec.activation} here",)


def _configuration(source: _Source) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return open_clip's model configuration and the preprocessing (mean and std at least)."""
    defaults = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    if source.folder is None:
        tag = _tag_config(source.name, source.pretrained)
        return open_clip.get_model_config(source.name), {key: tag.get(key, values) for key, values in defaults.items()}
    config, chosen = read_configuration(source.folder, defaults)
    with as_artifact_errors(source.folder):
        _check_declared_size(config, source.folder / FOLDER_WEIGHTS)
    return config, chosen


def _check_declared_size(config: dict[str, Any], weights: Path) -> None:
    """Refuse, before anything is allocated, a configuration of more weights than its file holds. Raises ValueError."""
    with safe_open(weights, framework="pt") as file:
        held = [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118  # not a dict
    layers = [config["text_cfg"].get("layers", 0), *np.atleast_1d(config["vision_cfg"].get("layers", 0)).tolist()]
    if sum(map(int, layers)) > len(held):
        raise ValueError(f"it declares {sum(map(int, layers)):,} layers, its weights file holds {len(held):,} tensors")
    if "timm_model_name" in config["vision_cfg"]:
        return  # built by another library; refused by the caller
    settings = {name: value for name, value in config.items() if name != "custom_text"}
    build = CustomTextCLIP if config.get("custom_text") else CLIP
    with torch.device("meta"):
        declared = sum(weight.numel() for weight in build(**settings).parameters())
    if declared > 2 * sum(held) + ROOM_FOR_POSITIONS:
        raise ValueError(f"it declares {declared:,} weights, its weights file holds {sum(held):,}")


def _check_image_size(name: str, config: dict[str, Any], size: int, is_resnet: bool) -> None:
    patch = RESNET_STRIDE if is_resnet else (config["vision_cfg"].get("patch_size") or 16)
    if size > MAX_IMAGE_SIZE:
        raise OptionError(f"--image-size {size}: the largest is {MAX_IMAGE_SIZE}")
    if size < patch or size % patch:
        nearest = max(patch, round(size / patch) * patch)
        raise OptionError(f"--image-size {size}: {name} needs a multiple of {patch}, for example {nearest}")


def _default_stages(depth: int) -> tuple[int, ...]:
    return tuple(depth * part // STAGE_COUNT for part in range(1, STAGE_COUNT + 1))


def _check_stages(name: str, stages: tuple[int, ...], depth: int) -> tuple[int, ...]:
    given = ",".join(map(str, stages))
    if not stages or list(stages) != sorted(set(stages)) or stages[0] < 1:
        raise OptionError(f"--stages {given}: give rising numbers from 1, for example {_default_stages(depth)}")
    if stages[-1] > depth:
        raise OptionError(f"--stages {given}: {name} has {depth} stages to choose from, not {stages[-1]}")
    return tuple(stages)


def _create(source: _Source, size: int, is_resnet: bool, preprocessing: dict[str, Any]) -> Any:
    """Build the model and fill it. A ResNet is built at its native size: open_clip cannot resize its pool."""
    force_size = None if is_resnet else size
    try:
        if source.folder is not None:
            return open_clip.create_model(f"local-dir:{source.folder}", force_image_size=force_size)
        tag = _tag_config(source.name, source.pretrained)
        repository = str(tag.get("hf_hub", "")).rstrip("/")
        checkpoint = fetch_clip_weights(f"{source.name}:{source.pretrained}", repository)
        # A path, not the tag: open_clip would ask the hub again, and warn of the paper's activation (see PAPER above).
        return open_clip.create_model(
            source.name,
            pretrained=str(checkpoint),
            force_image_size=force_size,
            force_preprocess_cfg=copy.deepcopy(preprocessing),
        )
    except (OSError, *BROKEN_MODEL) as error:
        where = source.folder or f"{source.name}:{source.pretrained}"
        raise ArtifactError(
            f"{where}: the model cannot be loaded ({first_line(error)}); fetch or copy it anew"
        ) from error


def _tokenizer(source: _Source) -> Any:
    name = f"local-dir:{source.folder}" if source.folder is not None else source.name
    try:
        return open_clip.get_tokenizer(name)
    except (OSError, ImportError, *BROKEN_MODEL) as error:
        raise ArtifactError(
            f"{source.name}: its tokenizer cannot be loaded ({first_line(error)}); choose another model"
        ) from error


def _resize_attention_pool(visual: Any, size: int) -> None:
    """Resize the pool's positions (first row: the class token) as open_clip does a ViT's: bicubic, antialiased."""
    positions = visual.attnpool.positional_embedding.detach()
    side, native = size // RESNET_STRIDE, int((len(positions) - 1) ** 0.5)
    if side != native:
        grid = positions[1:].reshape(1, native, native, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
        resized = torch.cat([positions[:1], grid.permute(0, 2, 3, 1).reshape(side * side, -1)])
        visual.attnpool.positional_embedding = torch.nn.Parameter(resized, requires_grad=False)
        visual.image_size = size


def _stage_widths(visual: Any, stages: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(visual, ModifiedResNet):
        base = visual.conv3.out_channels
        return tuple(base * 4 * 2 ** (stage - 1) for stage in stages)
    return (int(visual.transformer.width),) * len(stages)
