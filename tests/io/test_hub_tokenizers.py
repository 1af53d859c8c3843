"""Tokenizers from a hub: a local server stands in for it, the hub's own client talks to it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# In a process of its own: the hub's client reads its settings when it is imported.
PROGRAM = """
from aprilcli.errors import BackboneError
from aprilcli.io.hub import fetch_tokenizer
try:
    print(fetch_tokenizer("SigLIP:tag", "owner/tokenizer"))
except BackboneError as error:
    print("refused:", error)
"""
FILES = {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}", "open_clip_model.safetensors": b"weights"}


class Hub(BaseHTTPRequestHandler):
    """Serves the files of one repository as the hub does, with a commit and an ETag."""

    asked: list[str] = []  # noqa: RUF012  # emptied by each test

    def _answer(self, with_body: bool) -> None:
        Hub.asked.append(self.path)
        content = FILES.get(self.path.rsplit("/", 1)[-1])
        self.send_response(200 if content is not None else 404)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
            content = b""
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.asked.clear()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def fetch(endpoint: str, cache: Path, offline: str = "0") -> str:
    settings = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    settings |= {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": offline}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=settings, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_only_the_tokenizers_files_are_downloaded_and_only_once(hub: str, tmp_path: Path) -> None:
    folder = Path(fetch(hub, tmp_path))
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    asked = len(Hub.asked)
    assert asked > 0
    assert fetch(hub, tmp_path) == str(folder)
    assert fetch(hub, tmp_path, offline="1") == str(folder)
    assert len(Hub.asked) == asked


def test_a_cache_with_the_weights_alone_does_not_hold_the_tokenizer(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--tokenizer" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_model.safetensors").write_bytes(b"weights")
    (tmp_path / "models--owner--tokenizer" / "refs").mkdir()
    (tmp_path / "models--owner--tokenizer" / "refs" / "main").write_text(COMMIT)
    said = fetch("http://127.0.0.1:1", tmp_path)
    assert said.startswith("refused: the tokenizer of SigLIP:tag (owner/tokenizer): not on this machine")
    assert "127.0.0.1 cannot be reached" in said
    assert "run this once on a machine with internet access and copy" in said
    assert "HF_HUB_OFFLINE is set" in fetch("http://127.0.0.1:1", tmp_path, offline="1")
    (snapshot / "tokenizer.json").write_text("{}")
    assert fetch("http://127.0.0.1:1", tmp_path) == str(snapshot)
