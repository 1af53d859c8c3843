from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aprilcli import __version__
from aprilcli.errors import ArtifactError, InputError, OutputError
from aprilcli.io.artifacts import read_artifact, read_header, sha256_of_file, write_artifact

CREATED = "2026-01-02T03:04:05+00:00"
FIELDS = {"object": "Maß\n\udcff", "sources": [{"path": "a b.png", "sha256": "0" * 64}], "spec": {"stages": [1, 2]}}


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "features.1": torch.randn(5, 3, generator=generator).half(),
        "features.2": torch.randn(7, 3, generator=generator),
        "scores": torch.randn(4, generator=generator).bfloat16(),
        "source_of_row": torch.arange(6).reshape(2, 3).T,  # not contiguous
        "every_other": torch.arange(6, dtype=torch.int32)[::2],
        "one": torch.tensor(3, dtype=torch.uint8),
    }


def _bank(path: Path, **changes: Any) -> Path:
    write_artifact(path, changes.pop("kind", "bank"), changes.pop("tensors", _tensors()), FIELDS, created=CREATED)
    return path


def _file(path: Path, header: bytes | dict[str, Any], values: bytes = b"", declared: int | None = None) -> Path:
    """Write a safetensors file byte by byte."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if declared is None else declared).to_bytes(8, "little") + text + values)
    return path


def _metadata(**changes: Any) -> dict[str, str]:
    good = {"format": "aprilcli.bank", "format_version": "1", "version": "0.1.0", "created": CREATED, "fields": "{}"}
    return {name: value for name, value in (good | changes).items() if value is not None}


def _refused(path: Path, match: str, read: Callable[[Path], object] | None = None) -> None:
    with pytest.raises(ArtifactError, match=match) as caught:
        read(path) if read else read_artifact(path, "bank")
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    assert len(message) < len(str(path)) + 300
    assert ";" in message  # what is wrong; what to do


def test_read_back_as_written(tmp_path: Path) -> None:
    artifact = read_artifact(_bank(tmp_path / "new" / "bank.safetensors"), "bank")
    assert (artifact.kind, artifact.version, artifact.created) == ("bank", __version__, CREATED)
    assert artifact.fields == FIELDS
    assert artifact.tensors.keys() == _tensors().keys()
    for name, tensor in _tensors().items():
        assert artifact.tensors[name].dtype == tensor.dtype
        assert torch.equal(artifact.tensors[name], tensor)


def test_header_alone(tmp_path: Path) -> None:
    header = read_header(_bank(tmp_path / "bank.safetensors", kind="projector"))
    assert header.kind == "projector"
    assert header.fields == FIELDS
    assert header.shapes["features.2"] == (7, 3)
    assert header.shapes["one"] == ()
    assert header.dtypes["features.1"] == "F16"


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    path = _bank(tmp_path / "bank.safetensors")
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, _tensors()[name])
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "aprilcli.bank"
        assert json.loads(file.metadata()["fields"]) == FIELDS


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    first = _bank(tmp_path / "a.safetensors")
    write_artifact(
        tmp_path / "b.safetensors",
        "bank",
        dict(reversed(_tensors().items())),
        dict(reversed(FIELDS.items())),
        created=CREATED,
    )
    assert first.read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_created_is_now_unless_given(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a.safetensors", "bank", _tensors(), {})
    created = datetime.fromisoformat(read_header(tmp_path / "a.safetensors").created)
    assert created.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - created) < timedelta(minutes=1)


def test_tensors_outlive_the_file(tmp_path: Path) -> None:
    path = _bank(tmp_path / "bank.safetensors")
    tensors = read_artifact(path, "bank").tensors
    os.truncate(path, 0)  # a view of the mapped file would end the process here
    assert torch.equal(tensors["features.2"], _tensors()["features.2"])


@pytest.mark.parametrize(
    "tensors",
    [{"x": torch.zeros(2, 0)}, {"x": torch.zeros(2, dtype=torch.float64)}, {"x": torch.zeros(2, dtype=torch.bool)}],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="an artifact cannot hold tensor x"):
        write_artifact(tmp_path / "bank.safetensors", "bank", tensors, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    path = _bank(tmp_path / "bank.safetensors")
    before = path.read_bytes()
    tensor = torch.zeros(3, 4, dtype=dtype)
    tensor[2, 3] = value
    with pytest.raises(ArtifactError, match="not written, tensor 'x' has NaN or infinite values"):
        _bank(path, tensors={"x": tensor})
    assert path.read_bytes() == before
    save_file({"x": tensor}, path, metadata=_metadata())
    _refused(path, "holds NaN or infinite values in tensor 'x'")


def test_nan_beyond_the_first_chunk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aprilcli.io.artifacts._CHUNK", 5)
    for position in range(12):
        tensor = torch.zeros(12)
        tensor[position] = float("nan")
        save_file({"x": tensor}, tmp_path / "x.safetensors", metadata=_metadata())
        _refused(tmp_path / "x.safetensors", "NaN")


def test_another_kind(tmp_path: Path) -> None:
    path = _bank(tmp_path / "bank.safetensors")
    _refused(path, "holds a bank, but a projector is needed", lambda path: read_artifact(path, "projector"))


def test_missing_folder_device(tmp_path: Path) -> None:
    for read in (read_header, lambda path: read_artifact(path, "bank")):
        _refused(tmp_path / "none.safetensors", r"cannot be read \(No such file or directory\)", read)
        _refused(tmp_path, "is a folder", read)
        _refused(Path("/dev/zero"), "is not an ordinary file", read)


def test_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    _refused(tmp_path / "pipe.safetensors", "is not an ordinary file")


def test_cut_at_every_length(tmp_path: Path) -> None:
    path = _bank(tmp_path / "bank.safetensors")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        _refused(path, "is empty" if length == 0 else "truncated|not a valid safetensors")
    path.write_bytes(whole + b"\0")
    _refused(path, "not a valid safetensors")


@pytest.mark.parametrize("declared", [2**63, 2**64 - 1, 10**9, 0, 1])
def test_declared_header_size(tmp_path: Path, declared: int) -> None:
    _refused(
        _file(tmp_path / "x.safetensors", {"__metadata__": _metadata()}, declared=declared), "truncated|not a valid"
    )


def test_header_larger_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _file(path, b"{", declared=33 * 1024**2)
    os.truncate(path, 200 * 1024**2)  # sparse, but of the size that it declares
    _refused(path, "declares a header of 34,603,008 bytes")


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([2**40, 2**20], [0, 2**62]),
        ([2**62, 2**62], [0, 12]),
        ([3], [0, 2**50]),
        ([10**6], [0, 12]),
        ([3], [4, 16]),
        ([-3], [0, 12]),
        ([3.0], [0, 12]),
    ],
)
def test_declared_tensor_sizes(tmp_path: Path, shape: list[Any], offsets: list[int]) -> None:
    header = {"__metadata__": _metadata(), "x": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
    _refused(_file(tmp_path / "x.safetensors", header, b"\0" * 12), "not a valid safetensors")


def test_overlapping_tensors(tmp_path: Path) -> None:
    one = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    header = {"__metadata__": _metadata(), "x": one, "y": one}
    _refused(_file(tmp_path / "x.safetensors", header, b"\0" * 12), "not a valid safetensors")


@pytest.mark.parametrize("shape", [[0], [0, 2**62, 2**62], [3, 0]])
def test_empty_tensors(tmp_path: Path, shape: list[int]) -> None:
    header = {"__metadata__": _metadata(), "x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
    _refused(_file(tmp_path / "x.safetensors", header), "of shape|not a valid")


def test_too_many_dimensions_and_tensors(tmp_path: Path) -> None:
    entry = {"dtype": "I8", "shape": [1] * 1000, "data_offsets": [0, 1]}
    _refused(_file(tmp_path / "x.safetensors", {"__metadata__": _metadata(), "x": entry}, b"\0"), "of shape")
    many = {f"x{i}": {"dtype": "I8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(2000)}
    _refused(_file(tmp_path / "x.safetensors", {"__metadata__": _metadata(), **many}, b"\0" * 2000), "2000 tensors")
    _refused(_file(tmp_path / "x.safetensors", {"__metadata__": _metadata()}), "holds 0 tensors")


@pytest.mark.parametrize("dtype", ["F64", "BOOL", "F8_E4M3", "U64"])
def test_other_types(tmp_path: Path, dtype: str) -> None:
    size = {"F64": 8, "U64": 8}.get(dtype, 1)
    header = {"__metadata__": _metadata(), "x": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}
    _refused(_file(tmp_path / "x.safetensors", header, b"\0" * size), f"'x' of type {dtype}")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": None}, "not an aprilcli file"),
        ({"format": "pt"}, "not an aprilcli file"),
        ({"format": "aprilcli.\x1b[31m\nbank"}, "not an aprilcli file"),
        ({"format": "aprilcli." + "x" * 1000}, "not an aprilcli file"),
        ({"format_version": "2"}, r"newer aprilcli \(format '2', this one reads 1\); upgrade"),
        ({"format_version": "0"}, "unreadable metadata"),
        ({"format_version": "one"}, "unreadable metadata"),
        ({"format_version": "9" * 5000}, "unreadable metadata"),
        ({"format_version": None}, "lacks format_version"),
        ({"version": None}, "lacks version"),
        ({"version": "1\n\x1b[2J"}, "unreadable metadata"),
        ({"created": None}, "lacks created"),
        ({"created": "yesterday\n"}, "unreadable metadata"),
        ({"created": "2026-11-25\x1b06:59:06+00:00"}, "unreadable metadata"),
        ({"format_version": "9" * 4000}, "newer aprilcli"),
        ({"fields": None}, "lacks fields"),
        ({"fields": ""}, "unreadable metadata"),
        ({"fields": "{"}, "unreadable metadata"),
        ({"fields": "[1]"}, "not a JSON object"),
        ({"fields": '{"x": NaN}'}, "NaN is not JSON"),
        ({"fields": '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}"}, "unreadable metadata"),
        ({"fields": '{"a":' * 51 + "1" + "}" * 51}, "nested too deep"),
        ({"fields": '{"a":' * 900 + "1" + "}" * 900}, "nested too deep"),
        ({"fields": '{"x": ' + "9" * 10_000 + "}"}, "unreadable metadata"),
    ],
)
def test_metadata(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(2)}, path, metadata=_metadata(**changes))
    _refused(path, match)
    _refused(path, match, read_header)


def test_fields_as_deep_as_allowed_are_read(tmp_path: Path) -> None:
    deepest = '{"a":' * 50 + "1" + "}" * 50
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors", metadata=_metadata(fields=deepest))
    assert read_header(tmp_path / "x.safetensors").fields == json.loads(deepest)


def test_no_metadata_at_all(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    _refused(tmp_path / "x.safetensors", "not an aprilcli file")


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle", "zip"])
def test_pickles_with_our_suffix(tmp_path: Path, how: str) -> None:
    path, harmed = tmp_path / "x.safetensors", tmp_path / "harmed"
    trap = Trap(harmed)
    if how in ("torch", "legacy"):
        torch.save({"x": trap}, path, _use_new_zipfile_serialization=how == "torch")
    elif how == "pickle":
        path.write_bytes(pickle.dumps(trap))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(trap))
    _refused(path, "is a pickle, which could run code")
    assert not harmed.exists()


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_flipped_bytes_are_refused_or_read(tmp_path: Path) -> None:
    path = _bank(tmp_path / "bank.safetensors")
    whole = path.read_bytes()
    chance = random.Random(0)
    refusals = []
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 1, 4, 30))):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 0x22, 0x7F, 0xFF, chance.randrange(256)))
        path.write_bytes(damaged)
        try:
            read_artifact(path, "bank")
        except ArtifactError as error:
            refusals.append(str(error))
    assert all(len(message.splitlines()) == 1 for message in refusals)
    assert 500 < len(refusals) < 1000  # the others changed a finite value into another


def test_folder_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="a part of this path is a file"):
        _bank(tmp_path / "file" / "bank.safetensors")


def test_too_many_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aprilcli.io.artifacts._MAX_HEADER_BYTES", 500)
    with pytest.raises(OutputError, match="too much metadata for one bank"):
        _bank(tmp_path / "bank.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_sha256_of_file(tmp_path: Path) -> None:
    content = b"some bytes" * 100_000
    (tmp_path / "x").write_bytes(content)
    assert sha256_of_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    with pytest.raises(InputError, match=r"none: cannot be read \(No such file or directory\); check the path"):
        sha256_of_file(tmp_path / "none")


def test_a_column_of_one_element_is_written(tmp_path: Path) -> None:
    column = torch.arange(4.0).reshape(2, 2)[:1, 1]  # stride 2, but contiguous
    write_artifact(tmp_path / "a.safetensors", "bank", {"x": column}, {})
    assert read_artifact(tmp_path / "a.safetensors", "bank").tensors["x"].tolist() == [1.0]


def test_a_path_that_is_not_utf8_is_refused_before_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.safetensors")
    with pytest.raises(OutputError, match="valid UTF-8"):
        write_artifact(path, "bank", {"a": torch.ones(1)}, {})
    path.write_bytes(b"{}")
    with pytest.raises(ArtifactError, match="valid UTF-8"):
        read_header(path)
