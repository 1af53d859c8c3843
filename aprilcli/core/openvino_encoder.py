"""The image tower in OpenVINO, on a CPU: converted from PyTorch once, for each input size, and kept on disk.

OpenVINO and NNCF are imported when they are used; both are optional.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from aprilcli import __version__
from aprilcli.core.backbone import TorchImageEncoder, check_finite
from aprilcli.core.device import OPENVINO
from aprilcli.core.quantization import QuantizationImages
from aprilcli.core.towers import Tower
from aprilcli.errors import OptionError, OutputError
from aprilcli.io import model_cache
from aprilcli.io.images import to_pixels
from aprilcli.text import first_line
from aprilcli.types import ImageFeatures

_LOGGER = logging.getLogger(__name__)
_HINTS = {"fp32": "f32", "int8": "f32", "bf16": "bf16"}  # int8: of the layers that are not quantized
_PACKAGES = ("torch", "open_clip_torch", "timm", "openvino")  # what a converted model depends on


class OpenVinoImageEncoder:
    """The image tower of a frozen CLIP in OpenVINO (see ``ImageEncoder``); images are encoded one by one."""

    engine = OPENVINO

    def __init__(
        self, source: TorchImageEncoder, precision: str = "fp32", quantization: QuantizationImages | None = None
    ) -> None:
        """Convert the tower of ``source``, or load it from the cache folder, and compile it for the processor.

        ``precision``: fp32, bf16 or int8; int8 needs ``quantization``. Raises OptionError if the processor does not
        compute in bf16.
        """
        if (precision == "int8") != (quantization is not None):
            raise ValueError("int8 needs images, the other precisions none")
        self.spec = source.spec
        self.grids = source.grids
        self.device = torch.device("cpu")
        self.precision = precision
        self.quantization = quantization
        self._source = source
        self._of_size = {source.spec.image_size: self}
        check_precision(precision)
        core = _core()
        label = f"{self.spec.label}, {self.spec.image_size} pixels, {precision}"
        model = _load(_name(source, quantization), label, core, partial(_convert, source, quantization))
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._compiled = core.compile_model(model, "CPU", settings)

    @property
    def has_windows(self) -> bool:
        """Whether the features of windows can be encoded."""
        return False

    def at_size(self, image_size: int) -> OpenVinoImageEncoder:
        """Return an encoder with the same weights for inputs of another size, in pixels; each is made once."""
        if image_size not in self._of_size:
            other = OpenVinoImageEncoder(self._source.at_size(image_size), self.precision, self.quantization)
            other._of_size = self._of_size
            self._of_size[image_size] = other
        return self._of_size[image_size]

    def encode(self, pixels: NDArray[np.float32], *, windows: bool = False) -> ImageFeatures:
        """Encode prepared images [B, 3, S, S], without windows.

        Raises ArtifactError where a feature is not a finite number.
        """
        if windows:
            raise ValueError("this encoder has no windows")
        rows = [self._infer(image) for image in np.asarray(pixels, np.float32)]
        features, *outputs = (torch.from_numpy(np.concatenate(stage)) for stage in zip(*rows, strict=True))
        image = F.normalize(features, dim=-1)
        patch_tokens = tuple(tokens.flatten(2).transpose(1, 2).contiguous() for tokens in outputs)
        check_finite((image, *patch_tokens), self.spec.label, self.precision)
        return ImageFeatures(image, patch_tokens, self.grids)

    def _infer(self, image: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run one image [3, S, S]; a new request, as several threads may call this."""
        return self._compiled.infer_new_request([np.ascontiguousarray(image[None])]).to_tuple()  # type: ignore[no-any-return]


def check_precision(precision: str) -> None:
    """Raise OptionError if the processor does not compute in bf16: OpenVINO would use float32 instead."""
    if precision == "bf16" and "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise OptionError("precision bf16: this processor does not compute in it; use fp32")


@cache
def _core() -> Any:
    try:
        with _quiet():
            import openvino
        return openvino.Core()
    except ImportError as error:
        raise _broken(OPENVINO, error) from error


def _broken(package: str, error: ImportError) -> OptionError:
    return OptionError(f"{package} is installed but cannot be imported ({first_line(error)}); install it again")


class _Outputs(torch.nn.Module):
    """What is converted: the image features and the patch tokens of each stage, as a flat tuple."""

    def __init__(self, tower: Tower, stages: tuple[int, ...]) -> None:
        super().__init__()
        self.visual = tower.visual
        self._tower, self._stages = tower, stages

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features, outputs = self._tower.encode(pixels, self._stages)
        return (features, *outputs)


def _name(source: TorchImageEncoder, quantization: QuantizationImages | None) -> str:
    """Return a name for a converted model: a digest of all that it depends on."""
    packages = (*_PACKAGES, *(() if quantization is None else ("nncf",)))
    spec = source.spec
    parts = {
        "model": (spec.fingerprint, spec.activation, spec.image_size, spec.stages, spec.mean, spec.std),
        "versions": [__version__, *map(metadata.version, packages)],
        "quantization": None if quantization is None else quantization.sha256,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _load(name: str, label: str, core: Any, convert: Callable[[], Any]) -> Any:
    """Return the kept model of a name; convert and keep it first if there is none. ``label``: for notes."""
    if (model := _read(name, core)) is not None:
        return model
    converted = None
    try:
        with model_cache.claimed_cache():
            if (model := _read(name, core)) is not None:  # another process converted it meanwhile
                return model
            _LOGGER.warning("%s: converting it for the engine openvino", label)
            converted = convert()
            model_cache.keep_model(name, partial(_write, converted))
    except OutputError as error:
        _LOGGER.warning("%s; the converted model is not kept (APRILCLI_CACHE sets the cache folder)", error)
    model = _read(name, core)  # maps the file into memory, which is then shared between processes
    if model is None:
        model = convert() if converted is None else converted
    return model


def _read(name: str, core: Any) -> Any:
    path = model_cache.find_model(name)
    try:
        return None if path is None else core.read_model(path)
    except RuntimeError:  # incomplete in spite of its digests, as after a full disk
        return None


def _write(model: Any, layers: Path, weights: Path) -> None:
    import openvino

    openvino.serialize(model, layers, weights)


def _convert(source: TorchImageEncoder, quantization: QuantizationImages | None) -> Any:
    """Convert the tower for inputs [1, 3, S, S]; with images, quantize it."""
    with _quiet():
        import openvino

        side = source.spec.image_size
        module = _Outputs(source.tower, source.spec.stages).eval()
        with torch.no_grad():
            model = openvino.convert_model(
                module, example_input=torch.zeros(1, 3, side, side), input=[1, 3, side, side]
            )
        return model if quantization is None else _quantize(model, source, quantization)


def _quantize(model: Any, source: TorchImageEncoder, quantization: QuantizationImages) -> Any:
    """Quantize weights and activations to int8.

    Activations are quantized symmetrically: with zero points, some tokens of the embedded model are lost. Weights have
    seven bits: sums of larger ones overflow on processors without VNNI, so features would depend on the processor.
    """
    try:
        import nncf
        from nncf.quantization.advanced_parameters import OverflowFix
    except ImportError as error:
        raise _broken("nncf", error) from error

    spec = source.spec
    inputs = [to_pixels(image, spec.image_size, spec.mean, spec.std)[None] for image in quantization.images()]
    return nncf.quantize(
        model,
        nncf.Dataset(inputs),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        model_type=nncf.ModelType.TRANSFORMER if source.tower.is_transformer else None,
        subset_size=len(inputs),
        fast_bias_correction=True,
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without telemetry, which would use the network, and without warnings, logs and progress bars."""
    telemetry = "openvino_telemetry"
    before, level = sys.modules.get(telemetry), logging.root.manager.disable
    if before is None:
        sys.modules[telemetry] = None  # type: ignore[assignment]  # its import fails: both packages do without it
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if before is None:
            sys.modules.pop(telemetry, None)
