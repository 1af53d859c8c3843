"""Damaged and random files are decoded, or refused in one line, in bounded time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from image_kinds import every_form

from aprilcli.errors import InputError
from aprilcli.io.images import read_image

MAX_PIXELS = 250_000  # small, so that many fit in a second
MAX_SECONDS = 10.0  # an image of that size takes milliseconds
SMALL = np.arange(24 * 20 * 3, dtype=np.uint8).reshape(24, 20, 3)

# Pillow warns of damaged files; the command line suppresses these warnings.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")


FILES = every_form(SMALL)
outcomes: Counter[tuple[str, str]] = Counter()  # by (kind of file, read or refused)
FIRST_BYTES = sorted({content[:size] for content in FILES.values() for size in (4, 16, 40)})


@pytest.fixture(scope="module", autouse=True)
def _table_of_outcomes() -> Iterator[None]:
    """Print at the end how many files of each kind were read and refused (shown with ``-s``)."""
    yield
    print()
    for kind in sorted({kind for kind, _ in outcomes}):
        print(f"{kind:24} read {outcomes[kind, 'read']:6}  refused {outcomes[kind, 'refused']:6}")
    print(f"{outcomes.total()} files tried")


def check(folder: Path, content: bytes, kind: str, value_range: tuple[float, float] | None = None) -> None:
    path = folder / "fuzzed.png"
    path.write_bytes(content)
    began = time.monotonic()
    try:
        image = read_image(path, value_range=value_range, max_pixels=MAX_PIXELS)
    except InputError as error:
        outcomes[kind, "refused"] += 1
        message = str(error)
        assert message.startswith(f"{path}: ")
        assert message.isprintable()
        assert len(message) < len(str(path)) + 300
    else:
        outcomes[kind, "read"] += 1
        assert image.rgb.mode == "RGB"
        assert 1 <= image.rgb.width * image.rgb.height <= MAX_PIXELS
        assert len(image.rgb.tobytes()) == 3 * image.rgb.width * image.rgb.height
    assert time.monotonic() - began < MAX_SECONDS


def mutated(name: str, edits: list[tuple[float, int, bytes]], keep: float) -> bytes:
    """Change, insert or remove bytes, mostly near the start, where headers are, then truncate."""
    content = bytearray(FILES[name])
    for where, kind, piece in edits:
        place = int(where * where * len(content))
        if kind == 0:
            content[place : place + len(piece)] = piece
        elif kind == 1:
            content[place:place] = piece
        elif kind == 2:
            del content[place : place + len(piece)]
        elif content:
            content[min(place, len(content) - 1)] ^= 1 << (len(piece) % 8)
    return bytes(content[: round(keep * len(content))])


EDIT = st.tuples(
    st.floats(0, 1),
    st.integers(0, 3),
    st.one_of(
        st.binary(min_size=1, max_size=8), st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 3])
    ),
)
DAMAGE = given(
    name=st.sampled_from(sorted(FILES)),
    edits=st.lists(EDIT, max_size=6),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
    value_range=st.sampled_from([None, (0.0, 4095.0), (-1.0, 1e300)]),
)
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", sorted(FILES))
def test_undamaged_files_are_read(tmp_path: Path, name: str) -> None:
    check(tmp_path, FILES[name], f"{name}, undamaged")
    assert outcomes[f"{name}, undamaged", "read"] == 1


@settings(QUICK, max_examples=300)
@DAMAGE
def test_damaged_files(
    tmp_path: Path,
    name: str,
    edits: list[tuple[float, int, bytes]],
    keep: float,
    value_range: tuple[float, float] | None,
) -> None:
    check(tmp_path, mutated(name, edits, keep), name, value_range)


@settings(QUICK, max_examples=100)
@given(first=st.sampled_from(FIRST_BYTES), rest=st.binary(max_size=300))
@example(first=b"", rest=b"")
def test_random_bytes_after_a_valid_start(tmp_path: Path, first: bytes, rest: bytes) -> None:
    check(tmp_path, first + rest, "valid start, then random")


@settings(QUICK, max_examples=100)
@given(
    magic=st.sampled_from(["P1", "P2", "P3", "P4", "P5", "P6", "Pf", "PF", "P7"]),
    numbers=st.lists(st.one_of(st.integers(-3, 300), st.integers(), st.floats()), max_size=12),
    rest=st.binary(max_size=100),
)
def test_pnm_headers(tmp_path: Path, magic: str, numbers: list[float], rest: bytes) -> None:
    check(tmp_path, " ".join([magic, *map(str, numbers)]).encode() + b"\n" + rest, "pnm headers")


@pytest.mark.slow
@settings(QUICK, max_examples=20_000)
@DAMAGE
def test_many_damaged_files(
    tmp_path: Path,
    name: str,
    edits: list[tuple[float, int, bytes]],
    keep: float,
    value_range: tuple[float, float] | None,
) -> None:
    check(tmp_path, mutated(name, edits, keep), name, value_range)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FILES))
def test_every_byte_of_the_header(tmp_path: Path, name: str) -> None:
    for place in range(min(len(FILES[name]), 400)):
        for value in (0, 0x7F, 0xFF):
            content = bytearray(FILES[name])
            content[place] = value
            check(tmp_path, bytes(content), name)
