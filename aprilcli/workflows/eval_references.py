"""The references that each setting of an evaluation draws.

A seed puts the good training images of an object in an order; the first k are its k references. So they are drawn
without replacement, and the references of more shots include those of fewer.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aprilcli.core.catalogue import find_source
from aprilcli.core.detector import ModelInput
from aprilcli.core.memory_bank import MemoryBank
from aprilcli.errors import InputError
from aprilcli.io.data_fingerprint import relative_path
from aprilcli.io.datasets import LabeledObject
from aprilcli.io.walk import FoundImage
from aprilcli.options import EvalFusion, EvalOptions
from aprilcli.workflows.eval_settings import Setting
from aprilcli.workflows.pipeline import Reader


def fusion_of(options: EvalOptions, bank: MemoryBank | None = None) -> EvalFusion:
    """Return the fusion of an enrolled part's ``bank``; without it the chosen one, or the model's own."""
    if bank is not None:
        return EvalFusion(bank.recipe.fusion)
    return options.fusion or EvalFusion(find_source(options.model_name).fusion)


def draw_order(category: str, count: int, seed: int) -> list[int]:
    """Return the order in which a seed draws ``count`` images: the same on every machine, different per category.

    By ``category`` and not by path, so the root of the evaluation does not matter.
    """
    named = zlib.crc32(category.encode("utf-8", "surrogateescape"))
    order: list[int] = np.random.default_rng([seed, named]).permutation(count).tolist()
    return order


class References:
    """The references of an object for all settings, each read once.

    ``chosen``: per setting, positions in ``names`` (relative paths) and ``inputs``. ``unused``: the good
    training images that no setting draws. Raises InputError if too few can be read.
    """

    def __init__(self, item: LabeledObject, root: Path, reader: Reader, settings: Sequence[Setting]) -> None:
        """Draw and read."""
        self.names: list[str] = []
        self.inputs: list[ModelInput] = []
        self.problems: list[str] = []
        self._item, self._root, self._reader = item, root, reader
        self._positions: dict[int, int | None] = {}  # of each image read; None: unreadable
        most = {setting.seed: setting.shots for setting in sorted(settings, key=lambda setting: setting.shots)}
        drawn = {seed: self._draw(seed, shots) for seed, shots in most.items() if seed is not None}
        self.chosen = [drawn[s.seed][: s.shots] if s.seed is not None else () for s in settings]
        self.unused = [path for index, path in enumerate(item.train_good) if index not in self._positions]

    def _draw(self, seed: int, shots: int) -> tuple[int, ...]:
        order = draw_order(self._item.category, len(self._item.train_good), seed)
        readable = (position for index in order if (position := self._position(index)) is not None)
        drawn = tuple(itertools.islice(readable, shots))
        if len(drawn) < shots:
            raise InputError(
                f"{self._item.name}: {shots} shots need as many good training images, but only {len(drawn)} can be "
                "read; use fewer --shots, or other --objects"
            )
        return drawn

    def _position(self, index: int) -> int | None:
        if index not in self._positions:
            path = self._item.train_good[index]
            image = self._reader(FoundImage(path, relative_path(path, self._root)))
            if image.input is None:
                self.problems.append(f"{image.error}; another reference is drawn instead")
                self._positions[index] = None
            else:
                self._positions[index] = len(self.names)
                self.names.append(image.found.relative)
                self.inputs.append(image.input)
        return self._positions[index]
