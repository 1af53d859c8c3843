"""CLIP weights and tokenizers from a hub: the hub's own client connects to a local server."""

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
# Runs in a separate process, because the hub's client reads its settings on import.
PROGRAM = """
import sys
from aprilcli.errors import BackboneError
from aprilcli.io import hub
try:
    print(getattr(hub, sys.argv[1])(*sys.argv[2:]))
except BackboneError as error:
    print("refused:", error)
"""
WEIGHTS = ("fetch_clip_weights", "ViT:tag", "owner/model")
TOKENIZER = ("fetch_tokenizer", "SigLIP:tag", "owner/tokenizer")


class Hub(BaseHTTPRequestHandler):
    """Serve a repository's files as the hub does: with a commit, an ETag and the content."""

    files: dict[str, bytes] = {}  # noqa: RUF012  # set by each test
    requests: list[str] = []  # noqa: RUF012

    def _answer(self, with_body: bool) -> None:
        Hub.requests.append(f"{self.command} {self.path}")
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
    Hub.files, Hub.requests = {}, []
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def fetch(call: tuple[str, ...], endpoint: str, cache: Path, offline: str = "0") -> str:
    """Call a function of the hub module with its arguments; return the path that it returns, or its error."""
    settings = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    settings |= {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": offline}
    command = [sys.executable, "-c", PROGRAM, *call]
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout.strip()


def test_safetensors_are_preferred_and_the_cache_is_used(hub: str, tmp_path: Path) -> None:
    Hub.files = {"open_clip_model.safetensors": b"weights", "open_clip_pytorch_model.bin": b"pickle"}
    path = fetch(WEIGHTS, hub, tmp_path)
    assert Path(path).read_bytes() == b"weights"
    requests = len(Hub.requests)
    assert fetch(WEIGHTS, hub, tmp_path) == path
    assert len(Hub.requests) == requests


def test_a_bin_file_is_used_without_safetensors(hub: str, tmp_path: Path) -> None:
    Hub.files = {"open_clip_pytorch_model.bin": b"weights"}
    assert Path(fetch(WEIGHTS, hub, tmp_path)).name == "open_clip_pytorch_model.bin"


def test_a_repository_without_weights_is_refused_by_name(hub: str, tmp_path: Path) -> None:
    message = fetch(WEIGHTS, hub, tmp_path)
    assert message.startswith("refused: the weights of ViT:tag (owner/model)")
    assert "holds no open_clip weights" in message


def test_no_internet_fails_in_seconds_with_three_alternatives(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refused
        began = time.monotonic()
        message = fetch(WEIGHTS, f"http://127.0.0.1:{taken.getsockname()[1]}", tmp_path)
    assert time.monotonic() - began < 20
    assert len(message.splitlines()) == 1
    for part in ("ViT:tag", "cannot be reached", "copy its", "give a model folder", "use the model tiny"):
        assert part in message


def test_only_the_tokenizers_files_are_downloaded_and_only_once(hub: str, tmp_path: Path) -> None:
    Hub.files = {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}", "open_clip_model.safetensors": b"weights"}
    folder = Path(fetch(TOKENIZER, hub, tmp_path))
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    requests = len(Hub.requests)
    assert requests > 0
    assert fetch(TOKENIZER, hub, tmp_path) == str(folder)
    assert fetch(TOKENIZER, hub, tmp_path, offline="1") == str(folder)
    assert len(Hub.requests) == requests


def test_a_cache_with_the_weights_alone_does_not_hold_the_tokenizer(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--tokenizer" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_model.safetensors").write_bytes(b"weights")
    (tmp_path / "models--owner--tokenizer" / "refs").mkdir()
    (tmp_path / "models--owner--tokenizer" / "refs" / "main").write_text(COMMIT)
    message = fetch(TOKENIZER, "http://127.0.0.1:1", tmp_path)
    assert message.startswith("refused: the tokenizer of SigLIP:tag (owner/tokenizer): not on this machine")
    assert "127.0.0.1 cannot be reached" in message
    assert "run this once on a machine with internet access and copy" in message
    assert "HF_HUB_OFFLINE is set" in fetch(TOKENIZER, "http://127.0.0.1:1", tmp_path, offline="1")
    (snapshot / "tokenizer.json").write_text("{}")
    assert fetch(TOKENIZER, "http://127.0.0.1:1", tmp_path) == str(snapshot)
