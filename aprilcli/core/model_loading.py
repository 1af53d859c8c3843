"""Load a frozen CLIP: both encoders, or the image encoder alone."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP, _build_vision_tower, resize_pos_embed
from open_clip.transformer import QuickGELU
from torch.overrides import TorchFunctionMode

from aprilcli import __version__
from aprilcli.core.backbone import VISUAL, Backbone, TextEncoder, TorchImageEncoder, move_weights
from aprilcli.core.catalogue import (
    Configuration,
    ModelSource,
    activation_notes,
    find_source,
    read_source,
    weights_file,
)
from aprilcli.core.device import TORCH, resolve, resolve_device, resolve_precision
from aprilcli.core.encoder import ImageEncoder
from aprilcli.core.fingerprint import architecture, digest, is_position, model_fingerprint
from aprilcli.core.model_folder import BROKEN_MODEL, as_artifact_errors, native_size
from aprilcli.core.openvino_encoder import OpenVinoImageEncoder, check_precision
from aprilcli.core.quantization import QuantizationImages
from aprilcli.core.tokenizer import describe_tokenizer, find_tokenizer, load_tokenizer
from aprilcli.core.towers import Tower, tower_of
from aprilcli.defaults import TINY
from aprilcli.errors import ArtifactError, BackboneError, OptionError
from aprilcli.io.cache import recall, remember, state_of_file
from aprilcli.io.images import SourceImage
from aprilcli.io.tensor_files import mappable, open_tensors
from aprilcli.text import first_line
from aprilcli.types import LOGIT_SCALE, MAX_IMAGE_SIZE, MAX_LOGIT_SCALE, MAX_SIZES, ModelSpec, Views

STAGE_COUNT = 4  # stages by default
CACHED = "fingerprint"  # the cache's files of this kind
CHECKED = "shapes"  # likewise, of models whose shapes have been checked
SPARE_WEIGHTS = 10_000_000  # a configuration may declare this many more than its file holds, for positions


def load_backbone(
    model: str = TINY,
    *,
    image_size: int | Sequence[int] | None = None,
    tile: int | None = None,
    stages: tuple[int, ...] | None = None,
    device: str = "auto",
    precision: str = "auto",
    engine: str = TORCH,
    quantize_on: Iterable[SourceImage] = (),
) -> Backbone:
    """Load a frozen CLIP, whose encoder takes images of the first of its sizes.

    ``model``: ``tiny``, ``paper``, an open_clip name with an optional ``:TAG``, or a folder in open_clip's local-dir
    form. ``image_size``: one or several sizes, in pixels. ``tile``: see ``Views``. Sizes and ``stages`` (1-based) are
    by default the model's own; if it has none, its native size, and four equal parts of a transformer's blocks or the
    stages of a convolutional tower. ``engine``: torch, or openvino, which runs the image tower on the CPU; the text
    tower always runs in PyTorch. ``quantize_on``: images for the precision int8; the first ``MOST_IMAGES`` are taken.
    Text tower and tokenizer are made ready when they are used. Raises OptionError, InputError, ArtifactError or
    BackboneError; an unsupported model or option is found before anything is downloaded.
    """
    source = find_source(model)
    config = read_source(source)
    wanted = (image_size,) if isinstance(image_size, int) else tuple(image_size or source.image_sizes)
    blueprint, sizes = _blueprint(source, config, wanted)
    views = _check_views(sizes, tile)
    chosen = _check_stages(source.name, stages or source.stages or _default_stages(blueprint.depth), blueprint.depth)
    resolved_device, resolved_precision = resolve_engine(engine, device, precision)
    tokenizer_folder = find_tokenizer(source, config)
    path = weights_file(source)
    with _loading(source):
        loaded = path.stat()
        clip, fingerprint = _load_weights(source, config, path, resolved_device)
        tokens = describe_tokenizer(tokenizer_folder)
    tower = tower_of(clip.visual)
    spec = ModelSpec(
        backbone=source.name,
        pretrained=source.pretrained,
        activation="quickgelu" if any(isinstance(module, QuickGELU) for module in clip.modules()) else "gelu",
        image_size=sizes[0],
        stages=chosen,
        stage_widths=tuple(map(tower.width, chosen)),
        joint_width=int(config.model["embed_dim"]),
        mean=config.mean,
        std=config.std,
        fingerprint=fingerprint,
        logit_scale=_logit_scale(clip, source.label),
    )
    inputs = {"fingerprint": fingerprint, "activation": spec.activation, "tokenizer": tokens}
    tokenizer = functools.partial(load_tokenizer, source, config, tokenizer_folder)
    torch_precision = resolved_precision if engine == TORCH else "fp32"
    is_unchanged = functools.partial(_is_same_file, path, loaded)
    text = TextEncoder(clip, tokenizer, spec.label, resolved_device, torch_precision, inputs, is_unchanged)
    torch_encoder = TorchImageEncoder(tower, spec, resolved_device, torch_precision)
    encoder: ImageEncoder = torch_encoder
    if engine != TORCH:
        images = QuantizationImages.first_of(quantize_on, max(sizes)) if resolved_precision == "int8" else None
        encoder = OpenVinoImageEncoder(torch_encoder, resolved_precision, images)
    return Backbone(encoder, text, views, activation_notes(source, spec.activation))


def resolve_engine(engine: str, device: str, precision: str) -> tuple[torch.device, str]:
    """Return the device and the precision that an engine runs with. Raises OptionError where it cannot."""
    resolved = resolve(engine, device, precision)
    if engine != TORCH:
        check_precision(resolved[1])
    return resolved


def load_image_encoder(
    model: str, spec: ModelSpec, *, device: str = "auto", precision: str = "auto"
) -> TorchImageEncoder:
    """Load the image tower alone, with the features that ``load_backbone`` would give; the text tower is not built.

    ``spec``: the model as ``load_backbone`` describes it, in another process for instance; size, stages, mean, std and
    logit scale are taken from it. Its fingerprint is computed again from the weights file, which is read tensor by
    tensor. Raises ArtifactError where it differs, also for a file that is not in open_clip's own form.
    """
    source = find_source(model)
    config = read_source(source)
    _blueprint(source, config, (spec.image_size,))
    resolved_device = resolve_device(device)
    path = weights_file(source)
    weights: dict[str, torch.Tensor] = {}

    def fingerprinted() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in _read_weights(path):
            if name.startswith(VISUAL):
                weights[name] = tensor
            if source.folder or not is_position(name):
                yield name, tensor

    with _loading(source):
        found = digest(fingerprinted(), architecture(config.model))
        if found != spec.fingerprint:
            raise ArtifactError(
                f"{path}: fingerprint {found[:12]}, not {spec.label}'s {spec.fingerprint[:12]}; copy that model here"
            )
        model_config = config.model
        with _Unfilled():
            visual = _build_vision_tower(
                model_config["embed_dim"], model_config["vision_cfg"], model_config.get("quick_gelu", False)
            )
        tower = tower_of(visual)
        holder = torch.nn.Module()
        holder.visual = tower.visual
        resize_pos_embed(weights, holder)
        holder.load_state_dict(weights)
    _check_weights(source, holder)
    return TorchImageEncoder(tower, spec, resolved_device, resolve_precision(precision, resolved_device))


def _blueprint(source: ModelSource, config: Configuration, wanted: tuple[int, ...]) -> tuple[Tower, tuple[int, ...]]:
    """Build the model without memory for its weights and check it; return its image tower and the image sizes.

    The sizes are ``wanted``; without any, the native size rounded down to whole patches. Raises OptionError for sizes
    that do not fit, ArtifactError for a broken folder, BackboneError if unsupported.
    """
    with _configuring(source), torch.device("meta"):
        if source.folder is not None:
            _check_layers(config.model, weights_file(source))
        model = _build(config.model).eval()
        try:
            tower = tower_of(model.visual)
        except ValueError as error:
            raise BackboneError(f"{source.label}: {error}; choose another model") from error
        if source.folder is not None:
            _check_declared_size(model, weights_file(source))
        native = native_size(config.model)
        sizes = wanted or (max(tower.step, native - native % tower.step),)
        for size in sizes:
            _check_image_size(source.name, tower, size)
        _check_shapes(tower, config, sizes[0])
    return tower, sizes


def _check_shapes(tower: Tower, config: Configuration, size: int) -> None:
    """Refuse a tower of which an encoding has other shapes than it declares. Raises ValueError.

    What the cache knows to be right is not encoded again, which takes longer than the rest of ``_blueprint``.
    """
    key = {
        "config": hashlib.sha256(json.dumps(config.model, sort_keys=True).encode()).hexdigest(),
        "size": size,
        "versions": [__version__, open_clip.__version__, timm.__version__, torch.__version__],
    }
    if recall(CHECKED, key) is not None:
        return
    tower = tower.at_size(size)
    stages = tuple(range(1, tower.depth + 1))
    features, outputs = tower.encode(torch.zeros(1, 3, size, size), stages)
    declared = [(1, tower.width(stage), *tower.grid(stage)) for stage in stages]
    if features.shape[-1] != config.model["embed_dim"] or [tuple(tokens.shape) for tokens in outputs] != declared:
        raise ValueError("its image tower has other widths or grids than it declares")
    remember(CHECKED, key, torch.ones(1, device="cpu"))


@contextlib.contextmanager
def _configuring(source: ModelSource) -> Iterator[None]:
    """Turn what libraries raise for a configuration into an ArtifactError or BackboneError of one line."""
    if source.folder is not None:
        with as_artifact_errors(source.folder):
            yield
        return
    try:
        yield
    except BROKEN_MODEL as error:
        raise BackboneError(
            f"{source.label}: open_clip cannot build it ({first_line(error)}); choose another model"
        ) from error


@contextlib.contextmanager
def _loading(source: ModelSource) -> Iterator[None]:
    """Turn what libraries raise for weights that are damaged or do not fit into an ArtifactError of one line."""
    try:
        yield
    except (OSError, *BROKEN_MODEL) as error:
        raise ArtifactError(
            f"{source.label}: the model cannot be loaded ({first_line(error)}); download or copy it again"
        ) from error


class _Unfilled(TorchFunctionMode):
    """Leaves out random initial weights, which those of a file replace: a large model takes seconds to draw them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_initial = getattr(func, "__module__", None) == torch.nn.init.__name__
        if is_initial or func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _load_weights(
    source: ModelSource, config: Configuration, path: Path, device: torch.device
) -> tuple[torch.nn.Module, str]:
    """Build open_clip's model with the weights of a file; return it with its fingerprint.

    The image tower's weights are then on ``device``; those of the text tower stay mapped from the file, where that is
    possible. Weights that the cache knows unchanged are not checked and digested again.
    """
    key = {
        "file": state_of_file(path),
        "architecture": architecture(config.model),
        "positions": source.folder is not None,
        "open_clip": open_clip.__version__,
        "aprilcli": __version__,
    }
    with _Unfilled():
        clip = _build(config.model)
    with mappable(path) if path.suffix == ".safetensors" else contextlib.nullcontext(path) as mapped:
        _assign_checkpoint(clip, mapped)
        known = recall(CACHED, key) if key["file"] else None
        if known is not None:
            fingerprint = known.numpy().tobytes().hex()
        else:
            _check_weights(source, clip)
            fingerprint = model_fingerprint(clip, config.model, path if source.folder else None)
            if key["file"]:
                remember(CACHED, key, torch.tensor(list(bytes.fromhex(fingerprint)), dtype=torch.uint8))
        move_weights(clip, device, lambda name: name.startswith(VISUAL) or mapped != path)
    return clip, fingerprint


def _is_same_file(path: Path, before: os.stat_result) -> bool:
    """Return whether a file has neither been changed nor replaced."""
    try:
        now = path.stat()
    except OSError:  # deleted: what is mapped stays
        return True
    return (now.st_ino, now.st_size, now.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def _assign_checkpoint(clip: torch.nn.Module, path: Path) -> None:
    """Load a checkpoint as open_clip does, but use its tensors where they are instead of copying them."""
    load = clip.load_state_dict
    dtypes = {name: weights.dtype for name, weights in clip.state_dict().items()}

    def assign(weights: dict[str, torch.Tensor], strict: bool = True) -> Any:
        same = {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in weights.items()}
        return load(same, strict=strict, assign=True)

    clip.load_state_dict = assign  # type: ignore[assignment,method-assign]  # open_clip calls it without ``assign``
    try:
        open_clip.load_checkpoint(clip, str(path))
    finally:
        del clip.load_state_dict


def _build(config: dict[str, Any]) -> Any:
    """Build open_clip's model from its configuration, with random weights."""
    settings = {name: value for name, value in config.items() if name != "custom_text"}
    return (CustomTextCLIP if config.get("custom_text") else CLIP)(**settings)


def _check_layers(config: dict[str, Any], weights: Path) -> None:
    """Refuse more layers than the file holds tensors: each costs time, even without memory. Raises ValueError."""
    with open_tensors(weights) as file:
        held = len(file.keys())
    layers = [config["text_cfg"].get("layers", 0), *np.atleast_1d(config["vision_cfg"].get("layers", 0)).tolist()]
    if sum(layers) > held:
        raise ValueError(f"it declares {sum(layers):,} layers, its weights file holds {held:,} tensors")


def _check_declared_size(model: torch.nn.Module, weights: Path) -> None:
    """Refuse, before memory is allocated, many more weights than the file holds. Raises ValueError."""
    with open_tensors(weights) as file:
        held = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  # not a dict
    declared = sum(weight.numel() for weight in model.parameters())
    if declared > 2 * held + SPARE_WEIGHTS:
        raise ValueError(f"it declares {declared:,} weights, its weights file holds {held:,}")


def _check_image_size(name: str, tower: Tower, size: int) -> None:
    if size > MAX_IMAGE_SIZE:
        raise OptionError(f"image size {size}: the largest is {MAX_IMAGE_SIZE}")
    if tower.only_size not in (None, size):
        raise OptionError(f"image size {size}: {name} works at {tower.only_size} only")
    if size < tower.step or size % tower.step:
        nearest = max(tower.step, round(size / tower.step) * tower.step)
        raise OptionError(f"image size {size}: {name} needs a multiple of {tower.step}, for example {nearest}")


def _check_views(sizes: tuple[int, ...], tile: int | None) -> Views:
    given = ",".join(map(str, sizes))
    if len(sizes) > MAX_SIZES:
        raise OptionError(f"image size {given}: {len(sizes)} sizes, but at most {MAX_SIZES} are possible")
    if len(set(sizes)) < len(sizes):
        raise OptionError(f"image size {given}: give each size once")
    if tile is not None and tile < sizes[0]:
        raise OptionError(f"tile {tile}: smaller than the model's input of {sizes[0]} pixels; give at least {sizes[0]}")
    return Views(sizes, tile)


def _default_stages(depth: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, depth * part // STAGE_COUNT) for part in range(1, STAGE_COUNT + 1)}))


def _check_stages(name: str, stages: tuple[int, ...], depth: int) -> tuple[int, ...]:
    given = ",".join(map(str, stages))
    if not stages or list(stages) != sorted(set(stages)) or stages[0] < 1:
        example = ",".join(map(str, _default_stages(depth)))
        raise OptionError(f"stages {given}: list stages in ascending order, from 1, for example {example}")
    if stages[-1] > depth:
        raise OptionError(f"stages {given}: {name} has {depth} stages to choose from, not {stages[-1]}")
    return tuple(stages)


def _read_weights(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Read a checkpoint's tensors one by one, sorted by name."""
    if path.suffix == ".safetensors":
        with open_tensors(path) as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)
    else:
        yield from sorted(torch.load(path, map_location="cpu", weights_only=True, mmap=True).items())


def _check_weights(source: ModelSource, model: torch.nn.Module) -> None:
    extremes = (value for weights in model.state_dict().values() for value in torch.aminmax(weights))  # NaN if any is
    if not all(math.isfinite(value) for value in extremes):
        raise ArtifactError(f"{source.label}: its weights hold NaN or infinite values; download or copy it again")


def _logit_scale(clip: Any, label: str) -> float:
    """Return the model's own scale where it was trained with a sigmoid, as SigLIP was; the paper's otherwise.

    The sigmoid's bias is the same for both texts, so it cancels in the softmax.
    """
    if clip.logit_bias is None:
        return LOGIT_SCALE
    scale = float(clip.logit_scale.detach().exp())
    if not 0 < scale < MAX_LOGIT_SCALE:
        raise ArtifactError(f"{label}: its logit scale is {scale:g}; download or copy the model again")
    return scale
