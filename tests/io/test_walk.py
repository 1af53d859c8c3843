"""Walking folders: order, links, loops, unreadable folders, odd names, more names than are held in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from aprilcli.io import walk
from aprilcli.io.walk import LeftOut, find_images
from aprilcli.text import printable


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def names_in(folder: Path, follow: bool = False) -> list[str]:
    return [found.relative for found in find_images(folder, follow=follow)]


def test_images_are_sorted_by_their_whole_relative_path(tmp_path: Path) -> None:
    names = [
        "b.png",
        "b/one.png",
        "b-1.png",
        "a/z/deep.JPG",
        "a/z.png",
        "a.tif",
        "B.webp",
        "ü.bmp",
        "b!.png",
        "b/a.jpg",
    ]
    touch(tmp_path, *names)
    assert names_in(tmp_path) == sorted(names, key=os.fsencode)
    assert all(found.path == tmp_path / found.relative for found in find_images(tmp_path))


def test_only_image_extensions_in_any_case(tmp_path: Path) -> None:
    images = ["a.JPG", "a.Jpeg", "a.TIF", "a.jpg", "a.pGm", "b.webp", "c.png.png", "png.bmp"]
    touch(tmp_path, *images, "a.txt", "scores.csv", "png", "a.png.bak", "jpg.", ".png", "a.gz")
    assert names_in(tmp_path) == sorted(images)


def test_dotfiles_and_dotfolders_are_skipped(tmp_path: Path) -> None:
    touch(tmp_path, ".hidden.png", ".git/a.png", "b/.cache/a.png", "b/..png", "b/shown.png")
    assert names_in(tmp_path) == ["b/shown.png"]


@pytest.mark.parametrize(
    "name",
    [
        "two words.png",
        'a "quote".png',
        "a,b.png",
        "line\nbreak.png",
        "-rf.png",
        "=1+1.png",
        "日本.png",
        "e\u0301.png",
        "tab\t.png",
        "back\\slash.png",
        "*.png",
        "cr\r.png",
        os.fsdecode(b"\xff\xfe\x80.png"),
    ],
)
def test_relative_paths_name_the_file_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"content")
    (found,) = find_images(tmp_path)
    assert found.relative == name
    assert (tmp_path / found.relative).read_bytes() == b"content"
    shown = printable(found.relative)
    assert shown.encode().decode().isprintable()
    assert len(shown.splitlines()) == 1


def test_names_that_differ_only_in_case_or_extension_are_distinct(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "A.png", "a.jpg", "a.PNG")
    assert names_in(tmp_path) == ["A.png", "a.PNG", "a.jpg", "a.png"]


def test_linked_files_count_and_linked_folders_only_with_follow(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.png", "elsewhere/b.png")
    (tmp_path / "file.png").symlink_to(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder.png").symlink_to(tmp_path / "elsewhere")
    own = ["elsewhere/b.png", "file.png", "real/a.png"]
    assert names_in(tmp_path) == own
    assert names_in(tmp_path, follow=True) == sorted([*own, "link/a.png", "folder.png/b.png"])


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.png")
    (tmp_path / "link").symlink_to("real")
    assert names_in(tmp_path / "link") == ["a.png"]


def test_circular_links_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "self").symlink_to(".")
    (tmp_path / "a" / "to_b").symlink_to("../b")
    (tmp_path / "b" / "to_a").symlink_to("../a")
    (tmp_path / "loop").symlink_to("loop")
    followed = names_in(tmp_path, follow=True)
    assert followed == ["a/1.png", "a/to_b/2.png", "b/2.png", "b/to_a/1.png"]
    assert names_in(tmp_path) == ["a/1.png", "b/2.png"]


def test_a_dangling_link_counts_and_a_pipe_does_not(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert names_in(tmp_path) == ["gone.png", "loop.png"]


def test_a_folder_named_like_an_image_is_entered(tmp_path: Path) -> None:
    touch(tmp_path, "album.png/a.png", "album.jpg/.keep")
    assert names_in(tmp_path) == ["album.png/a.png"]


def test_a_missing_folder_gives_one_entry_with_the_error(tmp_path: Path) -> None:
    (found,) = find_images(tmp_path / "missing")
    assert found.error is not None
    assert "No such file or directory" in found.error


def test_a_folder_deleted_during_the_walk_gives_an_entry_with_the_error(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b/c.png", "d.png")
    walking = find_images(tmp_path)
    assert next(walking).relative == "a.png"
    (tmp_path / "b" / "c.png").unlink()
    (tmp_path / "b").rmdir()
    lost, last = walking
    assert lost.relative == "b/"
    assert "cannot be listed (No such file or directory)" in (lost.error or "")
    assert (last.relative, last.error) == ("d.png", None)


LIST_AS_NOBODY = """
import os, sys
from pathlib import Path
from aprilcli.io.walk import find_images
os.chdir(sys.argv[1])
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for found in find_images(Path()):
    print(found.relative, found.error)
"""


def test_an_unreadable_folder_gives_an_entry_and_the_walk_continues(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "locked/b.png", "locked.png")
    tmp_path.chmod(0o755)
    (tmp_path / "locked").chmod(0)
    try:
        run = subprocess.run([sys.executable, "-c", LIST_AS_NOBODY, str(tmp_path)], capture_output=True, text=True)
    finally:
        (tmp_path / "locked").chmod(0o755)
    assert run.stderr == ""
    locked = "locked/ locked: the folder cannot be listed (Permission denied); check that it exists and is readable"
    assert run.stdout.splitlines() == ["a.png None", "locked.png None", locked]


def test_a_path_that_is_too_long_gives_an_entry_with_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(25):
        Path("d" * 200).mkdir()
        os.chdir("d" * 200)
    (found,) = find_images(tmp_path)
    assert "File name too long" in (found.error or "")


@pytest.mark.parametrize("max_names", [1, 2, 3, 7, 8, 100])
def test_a_folder_of_more_names_than_are_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_names: int
) -> None:
    names = [f"{index}.png" for index in range(4)] + ["1/a.png", "1/b.png", "2/c/d.png"]
    touch(tmp_path, *names, "note.txt")
    monkeypatch.setattr(walk, "MAX_NAMES", max_names)
    assert names_in(tmp_path) == sorted(names)


def test_folders_are_listed_only_when_reached(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/2.png")
    walking = find_images(tmp_path)
    assert next(walking).relative == "a/1.png"
    touch(tmp_path, "b/1.png")  # b is not listed yet
    assert [found.relative for found in walking] == ["b/1.png", "b/2.png"]


def test_folders_that_link_to_each_other_are_entered_once(tmp_path: Path) -> None:
    count = 12
    for here in range(count):
        touch(tmp_path, f"{here:02}/a.png")
        for there in range(count):
            if there != here:
                (tmp_path / f"{here:02}" / f"to{there:02}").symlink_to(tmp_path / f"{there:02}")
    found = names_in(tmp_path, follow=True)
    assert len(found) == len(set(found)) <= 2 * count
    assert {name for name in found if name.count("/") == 1} == {f"{here:02}/a.png" for here in range(count)}


def left_out_of(folder: Path, follow: bool = False) -> dict[str, LeftOut]:
    named: dict[str, LeftOut] = {}
    list(find_images(folder, follow=follow, on_left_out=named.__setitem__))
    return named


def write_record(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"versions": {"aprilcli": "0.1.0"}}))


def test_results_of_this_program_are_left_out_and_images_beside_them_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "monday/maps/a.png.tiff", "monday/b.png", "eval/anomaly_maps/c.tiff", "eval/plots/d.png")
    write_record(tmp_path / "monday" / "run.json")
    write_record(tmp_path / "eval" / "metrics.json")
    assert names_in(tmp_path) == ["a.png", "monday/b.png"]
    assert left_out_of(tmp_path) == dict.fromkeys(
        ["monday/maps/", "eval/anomaly_maps/", "eval/plots/"], LeftOut.results
    )
    assert names_in(tmp_path / "monday" / "maps") == ["a.png.tiff"]  # given itself


def test_results_are_left_out_by_a_link_to_them_too(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "out/maps/b.tiff")
    write_record(tmp_path / "out" / "run.json")
    (tmp_path / "link").symlink_to("out/maps")
    assert names_in(tmp_path, follow=True) == ["a.png"]


@pytest.mark.parametrize("record", ['{"versions": {"other": "1"}}', "{}", "[]", '"aprilcli"', "no json", None])
def test_folders_named_as_results_are_entered_beside_a_record_of_another_program(
    tmp_path: Path, record: str | None
) -> None:
    touch(tmp_path, "maps/a.png")
    if record is not None:
        (tmp_path / "run.json").write_text(record)
    assert names_in(tmp_path) == ["maps/a.png"]
    assert left_out_of(tmp_path) == {}


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "$Recycle.Bin", "@Recycle"),
        *(
            "__MACOSX",
            "lost+found",
            "Thumbnails",
            "_thumbs",
            "thumb",
            "Network Trash Folder",
            "@tmp",
            "System Volume Information",
            "FOUND.000",
        ),
    ],
)
def test_system_folders_are_left_out(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.png", f"b/{name}/c.png")
    assert names_in(tmp_path) == ["a.png"]
    assert left_out_of(tmp_path) == {f"b/{name}/": LeftOut.system}


def test_linked_folders_that_are_not_followed_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.png")
    (tmp_path / "link").symlink_to("real")
    assert left_out_of(tmp_path) == {"link/": LeftOut.link}
    assert left_out_of(tmp_path, follow=True) == {}


def test_images_are_found_by_content_whatever_their_name(tmp_path: Path) -> None:
    for suffix in ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM", "GIF", "AVIF"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"as_{suffix}", suffix)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg_large", "JPEG")
    (tmp_path / "raw").write_bytes(b"\0\0\0\x18ftypcrx ")
    (tmp_path / "phone").write_bytes(b"\0\0\0\x18ftypheic")
    images = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    (tmp_path / "notes.txt").write_text("BMW bought P5 and II* of it")
    (tmp_path / "list.csv").write_text("P55,1")
    assert names_in(tmp_path) == images


def test_several_paths_are_found_once_and_named_from_their_common_folder(tmp_path: Path) -> None:
    touch(tmp_path, "line/b/1.png", "line/b/2.png", "line/a.png", "line/c.png", "line/notes.txt")
    paths = [tmp_path / "line" / name for name in ("c.png", "b", "b/2.png", "notes.txt", "c.png")]
    found = list(find_images(paths))
    assert [image.relative for image in found] == ["b/1.png", "b/2.png", "c.png", "notes.txt"]
    assert all(image.path == tmp_path / "line" / image.relative for image in found)
    (single,) = find_images([tmp_path / "line" / "a.png"])
    assert (single.relative, single.path) == ("a.png", tmp_path / "line" / "a.png")
    assert [image.relative for image in find_images([tmp_path / "line", tmp_path / "line" / "b"])] == names_in(
        tmp_path / "line"
    )
