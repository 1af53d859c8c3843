"""The settings of an evaluation: how many references, which, and the method that uses them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aprilcli.defaults import APRIL_GAN


@dataclass(frozen=True, order=True)
class Group:
    """Settings that differ by their seed only: ``shots`` references, used by ``method``."""

    shots: int
    method: str

    def label(self, methods: Sequence[str]) -> str:
        """Return the group's name beside others of the ``methods``: ``4 shots``, or ``4 shots, patchcore``."""
        shots = "1 shot" if self.shots == 1 else f"{self.shots} shots"
        return shots if tuple(methods) == (APRIL_GAN,) else f"{shots}, {self.method}"


@dataclass(frozen=True)
class Setting:
    """``shots`` references drawn by ``seed``; without a seed nothing is drawn: zero shots, or a bank's references.

    ``method``: one of ``METHODS`` or ``MUTUAL``.
    """

    shots: int
    seed: int | None = None
    method: str = APRIL_GAN

    @property
    def group(self) -> Group:
        """The settings that differ from this one by their seed only."""
        return Group(self.shots, self.method)
