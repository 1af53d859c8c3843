"""Counts of a scan, and the rows that its summary shows."""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass

from aprilcli.core.threshold import Threshold
from aprilcli.io import scores_csv

HIGHEST = 5  # scores in a summary without anomalous images
MOST_FLAGGED = 1000  # anomalous and unrecognised images in a summary
LISTED = 5  # unreadable images in the summary


@dataclass(frozen=True, order=True)
class _Ranked:
    """A row in a heap: a higher score first, then the row that came first."""

    score: float
    before: int
    row: scores_csv.ScoreRow


class Tally:
    """Counts rows; keeps all scores and the rows that the summary shows.

    ``with_regions`` counts the images with regions. ``stricter``: a threshold above the one in use;
    ``strictly_anomalous`` counts the anomalous images that reach it.
    """

    def __init__(self, stricter: Threshold | None = None) -> None:
        """Start at zero."""
        self.scored = self.unreadable = self.anomalous = self.unrecognised = 0
        self.strictly_anomalous = self.with_regions = 0
        self.stricter = stricter
        self.scores = array("f")
        self.not_read: list[str] = []
        self._highest: list[_Ranked] = []
        self._flagged: list[_Ranked] = []

    def count(self, row: scores_csv.ScoreRow) -> None:
        """Add a row."""
        if row.score is None:
            self.unreadable += 1
            if len(self.not_read) < LISTED:
                self.not_read.append(row.path)
            return
        self.scored += 1
        self.with_regions += bool(row.regions)
        self.scores.append(row.score)
        ranked = _Ranked(row.score, -self.scored, row)
        _keep(self._highest, ranked, HIGHEST)
        if row.verdict in ("anomalous", "unrecognised"):
            _keep(self._flagged, ranked, MOST_FLAGGED)
        if row.verdict == "anomalous":
            self.anomalous += 1
            self.strictly_anomalous += self.stricter is not None and self.stricter.reached(row.score)
        elif row.verdict == "unrecognised":
            self.unrecognised += 1

    @property
    def most_anomalous(self) -> list[scores_csv.ScoreRow]:
        """The anomalous and unrecognised images, the highest score first; if there are none, a few images."""
        return [ranked.row for ranked in sorted(self._flagged or self._highest, reverse=True)]

    def counts(self) -> dict[str, int]:
        """Return the counts for run.json."""
        names = ("scored", "unreadable", "anomalous", "unrecognised")
        return {name: getattr(self, name) for name in names}


def _keep(highest: list[_Ranked], ranked: _Ranked, limit: int) -> None:
    if len(highest) < limit:
        heapq.heappush(highest, ranked)
    else:
        heapq.heappushpop(highest, ranked)
