"""The images that an int8 model is quantized with: their values set the ranges of its activations."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aprilcli.errors import InputError
from aprilcli.io.images import SourceImage

MOST_IMAGES = 16  # the result hardly changes with more


@dataclass(frozen=True, eq=False)
class QuantizationImages:
    """Images resized to the largest input size S; smaller sizes are made of these.

    ``pixels`` [n, S, S, 3] uint8, before normalization; n from 1 to ``MOST_IMAGES``.
    """

    pixels: NDArray[np.uint8]

    @classmethod
    def first_of(cls, images: Iterable[SourceImage], size: int) -> Self:
        """Take the first ``MOST_IMAGES`` images. Raises InputError if there are none."""
        resized = [
            np.asarray(image.rgb.resize((size, size), Image.Resampling.BICUBIC))
            for image in itertools.islice(images, MOST_IMAGES)
        ]
        if not resized:
            raise InputError("no images to quantize the model with; give readable images, or use another precision")
        return cls(np.stack(resized))

    def __len__(self) -> int:
        """Return the number of images, n."""
        return len(self.pixels)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the shape and the pixels, hexadecimal."""
        return hashlib.sha256(f"{self.pixels.shape}\n".encode() + self.pixels.tobytes()).hexdigest()

    def images(self) -> Iterator[SourceImage]:
        """Yield the images; ``first_of`` gives the same pixels again at the same size."""
        for pixels in self.pixels:
            yield SourceImage(Image.fromarray(pixels))

    def describe(self) -> dict[str, Any]:
        """Return the number of images and their digest for a JSON record."""
        return {"images": len(self), "sha256": self.sha256}
