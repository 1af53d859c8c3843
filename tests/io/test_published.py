from __future__ import annotations

import collections
import hashlib
import io
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from aprilcli.errors import ArtifactError, OutputError
from aprilcli.io import published
from aprilcli.io.artifacts import read_header
from aprilcli.io.authors_format import read_authors_projector as read
from aprilcli.io.cache import cache_folder
from aprilcli.io.published import PUBLISHED, PublishedProjector, fetch_projector, git_blob_id

STAGES, WIDTH, JOINT_WIDTH = 4, 6, 5


def _layers() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    layers: dict[str, torch.Tensor] = {}
    for i in range(STAGES):
        layers[f"fc.{i}.weight"] = torch.randn(JOINT_WIDTH, WIDTH, generator=generator)
        layers[f"fc.{i}.bias"] = torch.randn(JOINT_WIDTH, generator=generator)
    return layers


def _saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def _equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# Reading the authors' files


def _file(tmp_path: Path, content: Any, **options: Any) -> Path:
    path = tmp_path / "projector.pth"
    path.write_bytes(content if isinstance(content, bytes) else _saved(content, **options))
    return path


def _check_refused(path: Path, match: str) -> None:
    with pytest.raises(ArtifactError, match=match) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reads_the_authors_format(tmp_path: Path, dtype: torch.dtype) -> None:
    layers = {name: tensor.to(dtype) for name, tensor in _layers().items()}
    found = read(_file(tmp_path, {"trainable_linearlayer": collections.OrderedDict(layers)}))
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in found.values())
    assert _equal(found, {name: tensor.float() for name, tensor in layers.items()})


def test_reads_a_saved_state_dict(tmp_path: Path) -> None:
    module = torch.nn.Module()
    module.fc = torch.nn.ModuleList(torch.nn.Linear(WIDTH * 2**i, JOINT_WIDTH) for i in range(3))
    found = read(_file(tmp_path, {"trainable_linearlayer": module.state_dict()}))
    assert _equal(found, dict(module.state_dict()))


class Trap:
    """An object whose unpickling creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def _zip(pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Build a PyTorch file around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


@pytest.mark.parametrize("how", ["value", "layer", "legacy", "pickle", "zip"])
def test_pickled_code_is_not_run(tmp_path: Path, how: str) -> None:
    created = tmp_path / "created"
    trap = Trap(created)
    content = {
        "value": lambda: _saved({"trainable_linearlayer": _layers(), "x": trap}),
        "layer": lambda: _saved({"trainable_linearlayer": {**_layers(), "fc.0.bias": trap}}),
        "legacy": lambda: _saved({"trainable_linearlayer": trap}, _use_new_zipfile_serialization=False),
        "pickle": lambda: pickle.dumps({"trainable_linearlayer": trap}),
        "zip": lambda: _zip(pickle.dumps({"trainable_linearlayer": trap}, 2)),
    }[how]()
    path = _file(tmp_path, content)
    _check_refused(path, "it is damaged or contains more than weights")
    assert not created.exists()
    if how in ("value", "layer"):  # without protection, the trap works
        torch.load(path, weights_only=False)
        assert created.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x40\x85R.",  # bytearray(2**46)
        b"\x80\x02ctorch\nTensor\n\x8a\x06\x00\x00\x00\x00\x00\x40\x85R.",  # Tensor(2**46)
        b"\x80\x02" + b"]" * 100_000 + b".",
        b"\x80\x02}" + b"." * 3,
        b"",
    ],
)
def test_pickles_that_request_huge_allocations_or_are_malformed(tmp_path: Path, pickled: bytes) -> None:
    _check_refused(_file(tmp_path, _zip(pickled)), "not a projector file of APRIL-GAN's authors")


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    _check_refused(_file(tmp_path, _zip(b"\0" * 10_000_000, zipfile.ZIP_DEFLATED)), "damaged")


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers.pop("fc.3.bias"),
        lambda layers: layers.pop("fc.0.weight"),
        lambda layers: (layers.pop("fc.1.weight"), layers.pop("fc.1.bias")),
        lambda layers: layers.update({"extra": torch.zeros(3)}),
        lambda layers: layers.update({3: torch.zeros(3), 4: torch.zeros(3)}),
    ],
)
def test_missing_or_unknown_layers(tmp_path: Path, change: Callable[[dict[Any, Any]], object]) -> None:
    layers = _layers()
    change(layers)
    _check_refused(_file(tmp_path, {"trainable_linearlayer": layers}), "its layers are not fc.0, fc.1")


@pytest.mark.parametrize("content", [[1], {}, {"trainable_linearlayer": {}}, {"trainable_linearlayer": 3}, _layers()])
def test_files_without_a_projector(tmp_path: Path, content: Any) -> None:
    _check_refused(_file(tmp_path, content), "it has no trainable_linearlayer")


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (torch.zeros(JOINT_WIDTH + 1, WIDTH), r"fc.2.weight of shape \(6, 6\) does not fit a joint width of 5"),
        (torch.zeros(JOINT_WIDTH), "of shape"),
        (torch.zeros(JOINT_WIDTH, WIDTH, 1), "of shape"),
        (torch.zeros(JOINT_WIDTH, 0), "of shape"),
        (torch.full((JOINT_WIDTH, WIDTH), torch.nan), "fc.2.weight contains NaN or infinite values"),
        (torch.full((JOINT_WIDTH, WIDTH), torch.inf), "fc.2.weight contains NaN or infinite values"),
        (torch.zeros(JOINT_WIDTH, WIDTH, dtype=torch.int64), "not dense floating-point tensors"),
        (torch.zeros(JOINT_WIDTH, WIDTH, dtype=torch.complex64), "not dense floating-point tensors"),
        (torch.zeros(JOINT_WIDTH, WIDTH).to_sparse(), "not dense floating-point tensors"),
        (torch.zeros(JOINT_WIDTH, WIDTH, device="meta"), "not dense floating-point tensors"),
        (torch.zeros(1).expand(JOINT_WIDTH, 2**40), "or exceed the file size"),  # declares 20 TB, stores 4 bytes
        (torch.zeros(()), "not dense floating-point tensors"),
        (3.0, "not dense floating-point tensors"),
    ],
)
def test_unusable_tensors(tmp_path: Path, tensor: Any, match: str) -> None:
    _check_refused(_file(tmp_path, {"trainable_linearlayer": {**_layers(), "fc.2.weight": tensor}}), match)


def test_missing_file_folder_and_empty_file(tmp_path: Path) -> None:
    _check_refused(tmp_path / "none.pth", r"cannot be read \(No such file or directory\)")
    _check_refused(tmp_path, r"cannot be read \(Is a directory\)")
    _check_refused(_file(tmp_path, b""), "damaged")


def test_damaged_files_raise_only_artifact_errors(tmp_path: Path) -> None:
    whole = _saved({"trainable_linearlayer": _layers()})
    rng = random.Random(0)
    messages = []
    for round_ in range(600):
        damaged = bytearray(whole[: rng.randrange(len(whole))] if round_ % 4 == 0 else whole)
        for _ in range(rng.choice((1, 3, 30)) if damaged else 0):
            damaged[rng.randrange(len(damaged))] = rng.choice((0, 0x2E, 0x52, 0xFF, rng.randrange(256)))
        try:
            read(_file(tmp_path, bytes(damaged)))
        except ArtifactError as error:
            messages.append(str(error))
    assert all(len(message.splitlines()) == 1 for message in messages)
    assert 300 < len(messages) < 600


# The download


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APRILCLI_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


class Server:
    """A mirror of the authors' files on 127.0.0.1. ``answer``: replaceable; ``paths``: the paths requested so far."""

    def __init__(self) -> None:
        self.content = _saved({"trainable_linearlayer": _layers()})
        self.paths: list[str] = []
        self.released = threading.Event()  # ends answers that wait
        self.answer: Callable[[BaseHTTPRequestHandler], None] = self.send
        self.url = ""

    def send(self, handler: BaseHTTPRequestHandler, declared: int | None = None, pause_at: int | None = None) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(self.content) if declared is None else declared))
        handler.end_headers()
        handler.wfile.write(self.content[:pause_at])
        if pause_at is not None:
            handler.wfile.flush()
            self.released.wait(30)


@contextmanager
def _serve(server: Server) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name http.server calls
            server.paths.append(self.path)
            server.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.daemon_threads = True
    http_server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that disconnected
    thread = threading.Thread(target=http_server.serve_forever, args=(0.02,))
    thread.start()
    server.url = f"http://127.0.0.1:{http_server.server_port}"
    try:
        yield
    finally:
        server.released.set()
        http_server.shutdown()
        thread.join()
        http_server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setitem(PUBLISHED, "visa", PublishedProjector("visa_pretrained.pth", git_blob_id(server.content)))
    with _serve(server):
        monkeypatch.setenv("APRILCLI_PROJECTOR_URL", server.url + "/mirror/")
        yield server


def _cached_names() -> list[str]:
    return sorted(path.name for path in (cache_folder() / "projectors").glob("*") if path.name != ".lock")


def _check_unavailable(match: str) -> None:
    with pytest.raises(ArtifactError, match=match) as caught:
        fetch_projector("visa")
    message = str(caught.value)
    assert message.startswith(
        os.environ["APRILCLI_PROJECTOR_URL"].rstrip("/") + "/visa_pretrained.pth: cannot be downloaded ("
    )
    assert message.endswith(
        "; download visa_pretrained.pth on a connected machine, copy it here and use the copy as the projector"
    )
    assert len(message.splitlines()) == 1
    assert _cached_names() == []


def test_git_blob_id() -> None:
    assert git_blob_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # git's well-known empty blob
    assert git_blob_id(b"hello\n") == hashlib.sha1(b"blob 6\0hello\n").hexdigest()


def test_published_files() -> None:
    assert {name: (file.file_name, file.blob_id) for name, file in PUBLISHED.items()} == {
        "visa": ("visa_pretrained.pth", "86d6848c543f8393663d35c0333498ffb5ce9b68"),
        "mvtec": ("mvtec_pretrained.pth", "a057cec6c2ba5996baa0160a51e155908156813f"),
    }
    assert "/f13b8a634e04f9fde8fa03db125b25af5695d8e1/" in published.BASE_URL


def test_second_fetch_uses_the_cache(server: Server) -> None:
    first = fetch_projector("visa")
    assert _equal(first, _layers())
    assert _equal(fetch_projector("visa"), _layers())
    assert server.paths == ["/mirror/visa_pretrained.pth"]
    assert _cached_names() == ["visa.safetensors"]
    fields = read_header(cache_folder() / "projectors" / "visa.safetensors").fields
    assert fields["blob_id"] == PUBLISHED["visa"].blob_id
    assert fields["url"] == server.url + "/mirror/visa_pretrained.pth"


def test_damaged_or_outdated_cache_is_downloaded_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_projector("visa")
    path = cache_folder() / "projectors" / "visa.safetensors"
    os.truncate(path, 100)
    assert _equal(fetch_projector("visa"), _layers())
    assert len(server.paths) == 2
    monkeypatch.setitem(PUBLISHED, "visa", PublishedProjector("visa_pretrained.pth", "0" * 40))
    with pytest.raises(ArtifactError, match="unexpected content"):
        fetch_projector("visa")
    assert len(server.paths) == 3


def test_unexpected_content(server: Server) -> None:
    server.content = server.content[:-1] + b"\1"
    _check_unavailable("unexpected content: git blob [0-9a-f]{12} instead of [0-9a-f]{12}")


def test_truncated_download(server: Server) -> None:
    server.answer = lambda handler: server.send(handler, declared=len(server.content) + 1)
    _check_unavailable(f"the connection ended after {len(server.content):,} of {len(server.content) + 1:,} bytes")


def test_missing_on_the_server(server: Server) -> None:
    server.answer = lambda handler: handler.send_error(404)
    _check_unavailable("HTTP 404")
    assert len(server.paths) == 1  # no retries


def test_answer_that_is_not_http(server: Server) -> None:
    server.answer = lambda handler: handler.wfile.write(b"\x1b[2Jnot HTTP\r\n") and None
    _check_unavailable(r"\(\\x1b\[2Jnot HTTP\)")  # control characters are escaped


def test_redirect(server: Server) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/raw"):
            server.send(handler)
        else:
            handler.send_response(302)
            handler.send_header("Location", "/raw")
            handler.end_headers()

    server.answer = answer
    assert _equal(fetch_projector("visa"), _layers())


@pytest.mark.parametrize("declared", [True, False])
def test_too_large(server: Server, monkeypatch: pytest.MonkeyPatch, declared: bool) -> None:
    monkeypatch.setattr(published, "_MAX_BYTES", 1000)

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if declared:
            handler.send_header("Content-Length", str(10**15))
        handler.end_headers()
        while not server.released.is_set():
            handler.wfile.write(b"x" * 1000)

    server.answer = endless
    _check_unavailable("larger than 1,000 bytes")


def test_silent_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "_TIMEOUT_S", 0.2)
    server.answer = lambda _: server.released.wait(30) and None
    begin = time.monotonic()
    _check_unavailable("timed out")
    assert time.monotonic() - begin < 5


def test_server_stalls_during_the_download(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "_TIMEOUT_S", 0.2)
    server.answer = lambda handler: server.send(handler, pause_at=1000)
    begin = time.monotonic()
    _check_unavailable("timed out")
    assert time.monotonic() - begin < 5


def test_endless_slow_download(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "_DEADLINE_S", 0.3)

    def send_slowly(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.released.wait(0.02):
            handler.wfile.write(b"x")

    server.answer = send_slowly
    _check_unavailable("incomplete after 0 s")


def test_connection_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("APRILCLI_PROJECTOR_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        _check_unavailable("refused")


@pytest.mark.parametrize("url", ["nonsense", "foo://x", "http://", "http://a b/", "http://[x"])
def test_invalid_mirror_url(server: Server, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("APRILCLI_PROJECTOR_URL", url)
    with pytest.raises(ArtifactError, match="cannot be downloaded"):
        fetch_projector("visa")


def test_cache_folder_not_writable(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("APRILCLI_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cannot be written \(.*\); .*; APRILCLI_CACHE sets the cache folder"):
        fetch_projector("visa")
    assert server.paths == []


def test_no_progress_bar_without_a_terminal(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    fetch_projector("visa", progress=True)
    assert capfd.readouterr() == ("", "")


def test_progress_bar_on_a_terminal(server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich treat stderr as a terminal
    fetch_projector("visa", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "projector visa" in err


def _child(server: Server) -> subprocess.Popen[bytes]:
    """Start another process that fetches ``visa``."""
    program = (
        "import sys\n"
        "from aprilcli.io import published\n"
        "published.PUBLISHED['visa'] = published.PublishedProjector('visa_pretrained.pth', sys.argv[1])\n"
        "tensors = published.fetch_projector('visa')\n"
        "print(float(tensors['fc.0.weight'].sum()))\n"
    )
    command = [sys.executable, "-c", program, git_blob_id(server.content)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_during_the_download(server: Server) -> None:
    server.answer = lambda handler: server.send(handler, pause_at=1000)
    child = _child(server)
    _wait_for(lambda: bool(server.paths))
    child.kill()
    child.communicate()
    assert _cached_names() == []
    # A process killed while writing leaves such a file:
    (cache_folder() / "projectors" / ".aprilcli-0123456789abcdef.safetensors").write_bytes(b"half")
    server.answer = server.send
    assert _equal(fetch_projector("visa"), _layers())
    assert _cached_names() == ["visa.safetensors"]


def test_two_processes_at_once(server: Server) -> None:
    requested = threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        requested.set()
        server.released.wait(1.0)
        server.send(handler)

    server.answer = slow
    child = _child(server)
    _wait_for(requested.is_set)
    assert _equal(fetch_projector("visa"), _layers())  # waits for the other process
    out, err = child.communicate()
    assert (child.returncode, err) == (0, b"")
    assert float(out) == pytest.approx(float(_layers()["fc.0.weight"].sum()))
    assert len(server.paths) == 1
    assert _cached_names() == ["visa.safetensors"]


def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    for name in ("pipe.pth", "zero.pth"):
        _check_refused(tmp_path / name, "is not an ordinary file")
