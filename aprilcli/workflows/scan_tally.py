"""Counts of a scan and its highest scores."""

from __future__ import annotations

from aprilcli.io import scores_csv

HIGHEST = 5  # scores in the summary


class Tally:
    """Counts rows and keeps the highest scores as (path, score)."""

    def __init__(self) -> None:
        """Start at zero."""
        self.scored = self.unreadable = self.anomalous = 0
        self.highest: list[tuple[str, float]] = []

    def count(self, row: scores_csv.ScoreRow) -> None:
        """Add a row."""
        if row.score is None:
            self.unreadable += 1
            return
        self.scored += 1
        self.anomalous += row.verdict == "anomalous"
        self.highest.append((row.path, row.score))
        self.highest.sort(key=lambda named: -named[1])
        del self.highest[HIGHEST:]

    def counts(self) -> dict[str, int]:
        """Return the counts for run.json."""
        return {"scored": self.scored, "unreadable": self.unreadable, "anomalous": self.anomalous}
