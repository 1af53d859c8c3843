"""Counts of a scan, its highest scores, and the images that do not show the part."""

from __future__ import annotations

from aprilcli.core.threshold import Threshold
from aprilcli.io import scores_csv

HIGHEST = 5  # scores in the summary
LISTED = 5  # unrecognised images, and unreadable ones, in the summary


class Tally:
    """Counts rows; keeps the highest scores as (path, score) and the first unrecognised and unreadable images.

    ``stricter``: a threshold above the one in use; ``strictly_anomalous`` counts the anomalous images that reach it.
    """

    def __init__(self, stricter: Threshold | None = None) -> None:
        """Start at zero."""
        self.scored = self.unreadable = self.anomalous = self.unrecognised = self.strictly_anomalous = 0
        self.stricter = stricter
        self.highest: list[tuple[str, float]] = []
        self.not_the_part: list[str] = []
        self.not_read: list[str] = []

    def count(self, row: scores_csv.ScoreRow) -> None:
        """Add a row."""
        if row.score is None:
            self.unreadable += 1
            if len(self.not_read) < LISTED:
                self.not_read.append(row.path)
            return
        self.scored += 1
        if row.verdict == "anomalous":
            self.anomalous += 1
            self.strictly_anomalous += self.stricter is not None and self.stricter.reached(row.score)
        elif row.verdict == "unrecognised":
            self.unrecognised += 1
            if len(self.not_the_part) < LISTED:
                self.not_the_part.append(row.path)
        self.highest.append((row.path, row.score))
        self.highest.sort(key=lambda named: -named[1])
        del self.highest[HIGHEST:]

    def counts(self) -> dict[str, int]:
        """Return the counts for run.json."""
        names = ("scored", "unreadable", "anomalous", "unrecognised")
        return {name: getattr(self, name) for name in names}
