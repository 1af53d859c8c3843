"""Reading labels.csv: what is accepted, and one line for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import draw_images, save_image
from PIL import Image

from aprilcli.errors import InputError
from aprilcli.io.labels_csv import labeled_dataset, read_labels


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_labels_are_read_by_path(tmp_path: Path, bom: str, end: str) -> None:
    rows = ["path,label", '"a/""1"".png",good', '"b, ü.png",defect', "=c.png,good", "./d.png, Defect ", ""]
    table = tmp_path / "labels.csv"
    table.write_text(bom + end.join(rows), encoding="utf-8", newline="")
    labels = {'a/"1".png': "good", "b, ü.png": "defect", "=c.png": "good", "d.png": "defect"}
    assert read_labels(table) == labels


def test_names_that_are_not_utf_8_and_further_columns_are_read(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_bytes(b"note,path,label\r\nseen,M\xfcller.png,good\r\nseen,M\xfcller.png,good\r\n")
    assert read_labels(table) == {"M\udcfcller.png": "good"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "needs the header path,label, found none; add it"),
        ("a.png,good\n", "needs the header path,label, found 'a.png,good'; add it"),
        ("path;label\na.png;good\n", "needs the header path,label, found 'path;label'; add it"),
        ("path,label\n", "no image is labeled; label some images first"),
        ("path,label\na.png\n", "line 2: needs a path and a label"),
        ("path,label\n,good\n", "line 2: needs a path and a label"),
        ("path,label\na.png,good\nb.png,bad\n", "line 3: unknown label 'bad'; use good or defect"),
        ("path,label\na/../../b.png,good\n", "line 2: a/../../b.png leads out of the folder"),
        ("path,label\n/b.png,good\n", "line 2: /b.png leads out of the folder"),
        ("path,label\na.png,good\na.png,defect\n", "line 3: a.png is labeled good and defect; remove one of the rows"),
        ('path,label\n"a.png,good\n', "cannot be read (unexpected end of data)"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, content: str, expected: str) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(content)
    with pytest.raises(InputError) as caught:
        read_labels(table)
    assert str(caught.value).startswith(str(table))
    assert expected in str(caught.value)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.csv", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_labels(path)


def test_a_data_set_has_the_labeled_images_only(tmp_path: Path) -> None:
    folder = draw_images(tmp_path / "shift 7", 4)
    save_image(folder / "sub" / "x.png", Image.new("RGB", (4, 4)))
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nsub/x.png,defect\n002.png,good\n000.png,defect\n")
    dataset = labeled_dataset(table, folder)
    (item,) = dataset.objects
    assert (dataset.layout, dataset.root, item.name, item.train_good) == ("labels", folder, "shift 7", ())
    assert [(image.path.name, image.defect, image.label, image.mask_paths) for image in item.test] == [
        ("000.png", "defect", 1, ()),
        ("002.png", "good", 0, ()),
        ("x.png", "defect", 1, ()),
    ]
    assert dataset.notes == ("images without a label, which are left out: 2",)


def test_labeled_images_that_are_not_in_the_folder_are_named(tmp_path: Path) -> None:
    folder, table = draw_images(tmp_path / "images", 1), tmp_path / "labels.csv"
    table.write_text("path,label\n000.png,good\nimages/000.png,good\n")
    with pytest.raises(InputError, match=r"1 labeled image is not in the given folder: images/000\.png; give the"):
        labeled_dataset(table, folder)
    with pytest.raises(InputError, match="does not exist"):
        labeled_dataset(table, tmp_path / "gone")
