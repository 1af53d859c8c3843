from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aprilcli import __version__
from aprilcli.errors import ArtifactError, InputError, OutputError
from aprilcli.io.artifacts import (
    UNDATED,
    Artifact,
    Schema,
    TensorSpec,
    parse,
    read_artifact,
    read_header,
    write_artifact,
)
from aprilcli.io.files import sha256_of_file

CREATED = "2026-01-02T03:04:05+00:00"
BANK: Schema[Any] = Schema("bank", dict, None, "make it again")
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
        read(path) if read else read_artifact(path, BANK)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    assert len(message) < len(str(path)) + 300
    assert ";" in message  # what is wrong; what to do


def test_read_back_as_written(tmp_path: Path) -> None:
    artifact = read_artifact(_bank(tmp_path / "new" / "bank.safetensors"), BANK)
    assert (artifact.kind, artifact.version, artifact.created) == ("bank", __version__, CREATED)
    assert artifact.fields == FIELDS
    assert artifact.tensors.keys() == _tensors().keys()
    for name, tensor in _tensors().items():
        assert artifact.tensors[name].dtype == tensor.dtype
        assert torch.equal(artifact.tensors[name], tensor)


def test_metadata_alone(tmp_path: Path) -> None:
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


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_artifact(tmp_path / f"{name}.safetensors", "bank", _tensors(), {"object": "bolt"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert read_header(tmp_path / "a.safetensors").created == UNDATED


def test_tensors_outlive_the_file(tmp_path: Path) -> None:
    path = _bank(tmp_path / "bank.safetensors")
    tensors = read_artifact(path, BANK).tensors
    os.truncate(path, 0)  # a view of the mapped file would end the process here
    assert torch.equal(tensors["features.2"], _tensors()["features.2"])


@pytest.mark.parametrize(
    "tensors",
    [{"x": torch.zeros(2, 0)}, {"x": torch.zeros(2, dtype=torch.float64)}, {"x": torch.zeros(2, dtype=torch.bool)}],
)
def test_unreadable_tensors_are_not_written(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
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
    with pytest.raises(ArtifactError, match=r"not written \(tensor 'x' has NaN or infinite values\)"):
        _bank(path, tensors={"x": tensor})
    assert path.read_bytes() == before
    save_file({"x": tensor}, path, metadata=_metadata())
    _refused(path, "tensor 'x' has NaN or infinite values")


def test_nan_is_found_at_any_position(tmp_path: Path) -> None:
    for length in (1, 12, 3_000_000):
        for position in (0, length // 3, length // 2, length - 1):
            tensor = torch.zeros(length)
            tensor[position] = float("nan")
            save_file({"x": tensor}, tmp_path / "x.safetensors", metadata=_metadata())
            _refused(tmp_path / "x.safetensors", "NaN")


def test_another_kind(tmp_path: Path) -> None:
    path, projector = _bank(tmp_path / "bank.safetensors"), replace(BANK, kind="projector")
    _refused(
        path, "is a bank, not a projector; give the path of a projector", lambda path: read_artifact(path, projector)
    )


def test_missing_folder_device(tmp_path: Path) -> None:
    for read in (read_header, lambda path: read_artifact(path, BANK)):
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
    tensor = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    header = {"__metadata__": _metadata(), "x": tensor, "y": tensor}
    _refused(_file(tmp_path / "x.safetensors", header, b"\0" * 12), "not a valid safetensors")


@pytest.mark.parametrize("shape", [[0], [0, 2**62, 2**62], [3, 0]])
def test_empty_tensors(tmp_path: Path, shape: list[int]) -> None:
    header = {"__metadata__": _metadata(), "x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
    reason = r"shapes\.x\.\d: .* greater than or equal to 1, got '0'|not a valid"
    _refused(_file(tmp_path / "x.safetensors", header), reason)


def test_too_many_dimensions_and_tensors(tmp_path: Path) -> None:
    path, metadata = tmp_path / "x.safetensors", {"__metadata__": _metadata()}
    entry = {"dtype": "I8", "shape": [1] * 1000, "data_offsets": [0, 1]}
    _refused(_file(path, {**metadata, "x": entry}, b"\0"), r"shapes\.x: .* at most 8 items")
    many = {f"x{i}": {"dtype": "I8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(2000)}
    _refused(_file(path, {**metadata, **many}, b"\0" * 2000), "shapes: .* at most 1024 items")
    _refused(_file(path, metadata), "shapes: .* at least 1 item")


@pytest.mark.parametrize("dtype", ["F64", "BOOL", "F8_E4M3", "U64"])
def test_other_types(tmp_path: Path, dtype: str) -> None:
    size = {"F64": 8, "U64": 8}.get(dtype, 1)
    header = {"__metadata__": _metadata(), "x": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}
    _refused(_file(tmp_path / "x.safetensors", header, b"\0" * size), f"dtypes\\.x: .* got '{dtype}'")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": None}, "not an aprilcli file"),
        ({"format": "pt"}, "not an aprilcli file"),
        ({"format": "aprilcli.\x1b[31m\nbank"}, "not an aprilcli file"),
        ({"format": "aprilcli." + "x" * 1000}, "not an aprilcli file"),
        ({"format_version": "2"}, "has format version '2', this aprilcli reads 1; upgrade"),
        ({"format_version": "0"}, "format version '0'"),
        ({"format_version": "one"}, "format version 'one'"),
        ({"format_version": "1\n"}, "format version"),
        ({"format_version": "9" * 5000}, "format version '9+"),
        ({"format_version": None}, "format version ''"),
        ({"version": None}, "version: Field required"),
        ({"version": "1\n\x1b[2J"}, "version: .* got"),
        ({"created": None}, "created: Field required"),
        ({"created": "yesterday\n"}, "created: .* got 'yesterday"),
        ({"created": "2026-11-25\x1b06:59:06+00:00"}, "created: .* got"),
        ({"fields": None}, "fields: Field required"),
        ({"fields": ""}, "fields: Expecting value"),
        ({"fields": "{"}, "fields: Expecting property name"),
        ({"fields": "[1]"}, "fields: Input should be a valid dictionary"),
        ({"fields": '{"x": NaN}'}, "fields: NaN is not JSON"),
        ({"fields": '{"x": ' + "9" * 10_000 + "}"}, "fields: Exceeds the limit"),
    ],
)
def test_metadata(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(2)}, path, metadata=_metadata(**changes))
    _refused(path, match)
    _refused(path, match, read_header)


@pytest.mark.parametrize("depth", [31, 900, 100_000])
@pytest.mark.parametrize("kind", ["[]", "{}"])
def test_nesting_is_limited_the_same_in_every_python(tmp_path: Path, depth: int, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    opening = "[" if kind == "[]" else '{"x": '
    nested = '{"x": ' + opening * depth + "1" + kind[1] * depth + "}"
    save_file({"x": torch.zeros(2)}, path, metadata=_metadata(fields=nested))
    if depth == 31:
        assert json.dumps(read_header(path).fields) == nested
    else:
        _refused(path, "fields: nested too deeply")
        _refused(path, "fields: nested too deeply", read_header)


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
            read_artifact(path, BANK)
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
    assert read_artifact(tmp_path / "a.safetensors", BANK).tensors["x"].tolist() == [1.0]


def test_a_path_that_is_not_utf8_is_refused_before_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.safetensors")
    with pytest.raises(OutputError, match="path in UTF-8"):
        write_artifact(path, "bank", {"a": torch.ones(1)}, {})
    path.write_bytes(b"{}")
    with pytest.raises(ArtifactError, match="path in UTF-8"):
        read_header(path)


# Schemas


@dataclass(frozen=True)
class Fields:
    names: tuple[Annotated[str, Field(max_length=3)], ...]
    share: Annotated[float, Field(gt=0)] = 1.0


def _thing_tensors(fields: Fields) -> dict[str, TensorSpec]:
    return {
        "rows": TensorSpec((len(fields.names), None), ("F32", "I64")),
        "scores": TensorSpec((2,), low=0, high=1, optional=True),
    }


SCHEMA = Schema("thing", Fields, _thing_tensors, "make the thing again")


def _thing(path: Path, fields: dict[str, Any], **tensors: torch.Tensor) -> Callable[[], Artifact[Fields]]:
    write_artifact(path, "thing", tensors, fields)
    return lambda: read_artifact(path, SCHEMA)


def test_what_follows_a_schema_is_parsed(tmp_path: Path) -> None:
    thing = _thing(tmp_path / "x", {"names": ["a", "b"], "more": 1}, rows=torch.ones(2, 5))()
    assert thing.content == Fields(("a", "b"))
    assert thing.fields == {"names": ["a", "b"], "more": 1}
    assert _thing(tmp_path / "x", {"names": ["a"]}, rows=torch.ones(1, 1), scores=torch.tensor([0, 1.0]))().tensors


@pytest.mark.parametrize(
    ("fields", "tensors", "reason"),
    [
        ({}, {}, "names: Field required"),
        ({"names": ["a", "long"]}, {}, "names.1: String should have at most 3 characters, got 'long'"),
        ({"names": ["a", 5]}, {}, "names.1: Input should be a valid string, got '5'"),
        ({"names": [], "share": 0}, {}, "share: Input should be greater than 0, got '0'"),
        ({"names": ["a"]}, {"scores": torch.ones(2)}, "tensor rows is missing"),
        ({"names": ["a"]}, {"rows": torch.ones(2, 5)}, "tensor rows is F32 (2, 5), not F32 or I64 (1, any)"),
        ({"names": ["a"]}, {"rows": torch.ones(1, 5, 1)}, "tensor rows is F32 (1, 5, 1), not F32 or I64 (1, any)"),
        ({"names": ["a"]}, {"rows": torch.ones(1)}, "tensor rows is F32 (1,), not F32 or I64 (1, any)"),
        ({"names": ["a"]}, {"rows": torch.ones(1, 5).half()}, "tensor rows is F16 (1, 5), not F32 or I64 (1, any)"),
        ({"names": ["a"]}, {"rows": torch.ones(1, 5), "\x1b": torch.ones(1)}, "tensor '\\x1b' does not belong to it"),
        (
            {"names": ["a"]},
            {"rows": torch.ones(1, 5), "scores": torch.tensor([0, 1.5])},
            "tensor scores has values outside 0 to 1",
        ),
        (
            {"names": ["a"]},
            {"rows": torch.ones(1, 5), "scores": torch.tensor([-0.1, 0.5])},
            "tensor scores has values outside 0 to 1",
        ),
    ],
)
def test_what_does_not_follow_its_schema_is_refused(
    tmp_path: Path, fields: dict[str, Any], tensors: dict[str, torch.Tensor], reason: str
) -> None:
    read = _thing(tmp_path / "x", fields, **(tensors or {"rows": torch.ones(1, 5)}))
    with pytest.raises(ArtifactError) as caught:
        read()
    assert str(caught.value) == f"{tmp_path / 'x'}: not a valid thing ({reason}); make the thing again"


def test_foreign_values_in_an_error_are_short_and_printable() -> None:
    for value in ({"\x1b[31m" * 100: 1}, {"names": ["\x1b[31m" * 100]}, {"names": ["x" * 10_000]}, [1], "x", None):
        with pytest.raises(ValueError, match=": ") as caught:
            parse(Fields, value)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = _bank(tmp_path / "bank.safetensors")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
