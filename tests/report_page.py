"""A report page as tests read it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from helpers import run


class ReportPage(HTMLParser):
    """Collects what a test looks for: text, tags with attributes, and the content of JSON blocks by id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.content = path.read_text(encoding="ascii")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: dict[str, Any] = {}
        self.text = ""
        self._block: str | None = None
        self._is_hidden = False
        self.feed(self.content)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self._is_hidden = tag in ("script", "style")
        self._block = attributes.get("id") if attributes.get("type") == "application/json" else None

    def handle_endtag(self, tag: str) -> None:
        self._is_hidden, self._block = False, None
        if tag == "td":
            self.text += " | "

    def handle_data(self, data: str) -> None:
        if self._block is not None:
            self.blocks[self._block] = json.loads(data)
        elif not self._is_hidden:
            self.text += data

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the page's data."""
        data = self.blocks["data"]
        return [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]]


def report(out: Path, *arguments: object) -> ReportPage:
    """Run `report` on a folder; return the page."""
    result = run("report", out, *arguments)
    assert result.exit_code == 0, result.output
    return ReportPage(out / "report.html")
