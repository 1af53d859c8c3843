"""The features of the frozen encoder during a training, kept on disk from the first epoch on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from aprilcli.core.encoder import ImageEncoder
from aprilcli.io.feature_store import FeatureStore, free_bytes, remove_store, slot_bytes

SHARE = 0.5  # of the free disk space
GIB = 2**30

Features = tuple[tuple[torch.Tensor, ...], torch.Tensor]  # patch tokens N × [L, Cv] float32, mask [S, S] float32


class FeatureCache:
    """Patch tokens and masks of images that are not composed, for each input size; at most ``SHARE`` of the free disk.

    The first images have a place if not all fit. Without a place, or if the disk cannot be written, ``find`` returns
    None and the images are encoded again.
    """

    def __init__(
        self,
        folder: Path,
        encoders: Mapping[int, ImageEncoder],
        images: Sequence[Path],
        note: Callable[[str], None],
    ) -> None:
        """Create the files in ``folder``; ``encoders``: by input size in pixels. ``note`` is called with problems."""
        self._folder, self._note = folder, note
        self._stores: dict[int, tuple[FeatureStore, FeatureStore]] = {}
        self._slots: dict[Path, int] = {}
        self._is_full = False
        shapes = {
            size: [(h * w, width) for (h, w), width in zip(encoder.grids, encoder.spec.stage_widths, strict=True)]
            for size, encoder in encoders.items()
        }
        each = sum(slot_bytes(shapes[size]) + size**2 for size in shapes)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = free_bytes(folder)
            count = min(len(images), int(SHARE * free) // each)
            if count < len(images):
                needed = len(images) * each / SHARE
                note(
                    f"{folder}: no space to keep the features of {len(images) - count} of {len(images)} images, which "
                    f"are encoded in each epoch ({needed / GIB:.2f} GiB must be free, {free / GIB:.2f} GiB are)"
                )
            if count:
                for size in encoders:
                    tokens = FeatureStore(folder / f"{size}-tokens", count, shapes[size])
                    self._stores[size] = tokens, FeatureStore(folder / f"{size}-masks", count, [(size, size)], bool)
                self._slots = {path: slot for slot, path in enumerate(images[:count])}
        except OSError as error:
            self._stop(error)

    def find(self, image: Path, size: int) -> Features | None:
        """Return the features of an image at an input size, or None."""
        slot = self._slots.get(image)
        if slot is None or not self._stores[size][1].has(slot):
            return None
        tokens, (mask,) = (store.get([slot]) for store in self._stores[size])
        return tuple(torch.from_numpy(stage[0]) for stage in tokens), torch.from_numpy(mask[0]).float()

    def keep(self, image: Path, size: int, features: Features) -> None:
        """Keep the features of an image at an input size, if there is a place for them."""
        slot = self._slots.get(image)
        if slot is None or self._is_full:
            return
        tokens, mask = features
        store, masks = self._stores[size]
        try:
            store.put(slot, [stage.cpu().numpy() for stage in tokens])
            masks.put(slot, [mask.numpy() > 0])
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        self._is_full = True
        self._note(
            f"{self._folder}: cannot be written ({error.strerror or error}); "
            "features that are not kept are encoded in each epoch"
        )


def remove_features(folder: Path) -> None:
    """Delete the files of a cache, also those of a killed training; other files stay."""
    with suppress(OSError):
        for store in (*folder.glob("*-tokens"), *folder.glob("*-masks")):
            remove_store(store)
        folder.rmdir()
