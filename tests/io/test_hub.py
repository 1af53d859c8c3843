"""CLIP weights from a hub: a local server stands in for it, the hub's own client talks to it."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# In a process of its own: the hub's client reads its settings when it is imported.
PROGRAM = """
from aprilcli.errors import BackboneError
from aprilcli.io.hub import fetch_clip_weights
try:
    print(fetch_clip_weights("ViT:tag", "owner/model"))
except BackboneError as error:
    print("refused:", error)
"""


class Hub(BaseHTTPRequestHandler):
    """Serves one repository's files as the hub does: a commit, an ETag, the bytes."""

    files: dict[str, bytes] = {}  # noqa: RUF012  # set by each test
    asked: list[str] = []  # noqa: RUF012

    def _answer(self, with_body: bool) -> None:
        Hub.asked.append(f"{self.command} {self.path}")
        content = Hub.files.get(self.path.rsplit("/", 1)[-1])
        self.send_response(200 if content is not None else 404)
        self.send_header("X-Repo-Commit", COMMIT)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
            content = b""
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
    Hub.files, Hub.asked = {}, []
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def fetch(endpoint: str, cache: Path) -> str:
    settings = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    settings |= {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=settings, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_safetensors_come_first_and_the_cache_is_asked_before_the_hub(hub: str, tmp_path: Path) -> None:
    Hub.files = {"open_clip_model.safetensors": b"weights", "open_clip_pytorch_model.bin": b"pickle"}
    path = fetch(hub, tmp_path)
    assert Path(path).read_bytes() == b"weights"
    asked = len(Hub.asked)
    assert fetch(hub, tmp_path) == path
    assert len(Hub.asked) == asked


def test_older_repositories_hold_a_bin_file(hub: str, tmp_path: Path) -> None:
    Hub.files = {"open_clip_pytorch_model.bin": b"weights"}
    assert Path(fetch(hub, tmp_path)).name == "open_clip_pytorch_model.bin"


def test_a_repository_without_weights_is_named(hub: str, tmp_path: Path) -> None:
    said = fetch(hub, tmp_path)
    assert said.startswith("refused: the weights of ViT:tag (owner/model)")
    assert "holds no open_clip weights" in said


def test_no_internet_fails_in_seconds_with_three_ways_on(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refused
        began = time.monotonic()
        said = fetch(f"http://127.0.0.1:{taken.getsockname()[1]}", tmp_path)
    assert time.monotonic() - began < 20
    assert len(said.splitlines()) == 1
    for part in ("ViT:tag", "cannot be reached", "copy its", "--model DIR", "--model tiny"):
        assert part in said
