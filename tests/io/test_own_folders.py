"""Labeled folders as people keep them: other names, masks beside images, channels, links, and other folders."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aprilcli.errors import InputError
from aprilcli.io.datasets import LabeledDataset, read_dataset
from aprilcli.io.walk import LeftOut


def draw(root: Path, *paths: str) -> Path:
    """Save an image of noise for each path, or a mask if its last folder or file name says so."""
    for number, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        if any(word in path.casefold() for word in ("mask", "_gt", "label", "ground", "seg", "/gt/", "_bin", "_m.")):
            pixels = np.zeros((12, 12), np.uint8)
            pixels[3:6, 3:6] = 255
        Image.fromarray(pixels).save(file)
    return root


def summary(dataset: LabeledDataset) -> dict[str, tuple[list[str], dict[str, tuple[str, list[str]]]]]:
    """Return the training images, and defect and masks of each test image, per object."""

    def name(path: Path) -> str:
        return path.relative_to(dataset.root).as_posix()

    return {
        item.name: (
            [name(path) for path in item.train_good],
            {name(image.path): (image.defect, [name(mask) for mask in image.mask_paths]) for image in item.test},
        )
        for item in dataset.objects
    }


@pytest.mark.parametrize("suffix", ["_label.bmp", "_GT.png", "_mask.png", "_seg.tif", "-gt.png"])
def test_masks_beside_their_images_are_not_tested(tmp_path: Path, suffix: str) -> None:
    draw(tmp_path, "good/0.jpg", f"good/0{suffix}", "bad/day/1.jpg", f"bad/day/1{suffix}", "train/good/2.jpg")
    draw(tmp_path, f"train/good/2{suffix}")
    dataset = read_dataset(tmp_path)
    train, test = summary(dataset)[tmp_path.name]
    assert train == ["train/good/2.jpg"]
    assert test == {
        "bad/day/1.jpg": ("bad", [f"bad/day/1{suffix}"]),
        "good/0.jpg": ("good", [f"good/0{suffix}"]),
    }
    assert dataset.problems == ()
    assert "masks beside their images: 2" in dataset.notes[0]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("0.jpg", "0mask.png"),
        ("0.jpg", "0_bin.png"),
        ("0.png", "0_m.png"),
        ("0.jpg", "0_annotated_mask.png"),
        ("0.jpg", "0.jpg_mask.png"),
        ("img_0.png", "0_mask.png"),
        ("0_rgb.jpg", "0_mask.png"),
        ("0_image.jpg", "0_label.png"),
        ("0.png", "0/mask.png"),
    ],
)
def test_masks_with_other_names_are_found_beside_their_images(tmp_path: Path, image: str, mask: str) -> None:
    draw(tmp_path, "good/0.png", f"bad/{image}", f"bad/{mask}")
    dataset = read_dataset(tmp_path)
    assert summary(dataset)[tmp_path.name][1] == {
        f"bad/{image}": ("bad", [f"bad/{mask}"]),
        "good/0.png": ("good", []),
    }
    assert dataset.problems == ()


def test_files_named_as_masks_are_never_tested(tmp_path: Path) -> None:
    draw(tmp_path, "good/0.png", "bad/0.png", "bad/0_mask_overlay.png", "bad/1.png", "bad/1_b.png", "bad/label_x.png")
    dataset = read_dataset(tmp_path)
    assert sorted(summary(dataset)[tmp_path.name][1]) == ["bad/0.png", "bad/1.png", "bad/1_b.png", "good/0.png"]
    assert dataset.problems == tuple(
        f"bad/{name}.png: mask without an image; left out" for name in ("0_mask_overlay", "label_x")
    )


def test_images_that_are_all_named_as_masks_are_tested_unless_they_look_so(tmp_path: Path) -> None:
    draw(tmp_path, "good/0.png", "bad/1.png", "drawn/0_mask.png")
    for path in ("good/0.png", "bad/1.png"):
        (tmp_path / path).rename(tmp_path / path.replace("/", "/label_"))
    dataset = read_dataset(tmp_path)
    assert sorted(summary(dataset)[tmp_path.name][1]) == ["bad/label_1.png", "good/label_0.png"]
    assert dataset.problems[0] == "drawn/0_mask.png: mask without an image; left out"


@pytest.mark.parametrize("names", ["normal normal_test abnormal mask", "train/good good crack GT_masks"])
def test_a_mask_that_fits_several_images_belongs_to_the_only_anomalous_one(tmp_path: Path, names: str) -> None:
    train, good, bad, masks = names.split()
    draw(tmp_path, f"{train}/0.png", f"{good}/0.png", f"{bad}/0.png", f"{masks}/0.png")
    dataset = read_dataset(tmp_path)
    test = summary(dataset)[tmp_path.name][1]
    assert (test[f"{bad}/0.png"], test[f"{good}/0.png"]) == ((bad, [f"{masks}/0.png"]), ("good", []))
    assert f"those of the anomalous image: 1, first {masks}/0.png" in dataset.notes[-1]
    assert dataset.problems == ()


def test_a_folder_of_masks_is_preferred_to_masks_beside_images(tmp_path: Path) -> None:
    draw(tmp_path, "good/9.png", "bad/0.png", "bad/0_mask.png", "bad/1.png", "bad/1_mask.png", "masks/0.png")
    dataset = read_dataset(tmp_path)
    assert summary(dataset)[tmp_path.name][1] == {
        "bad/0.png": ("bad", ["masks/0.png"]),
        "bad/1.png": ("bad", ["bad/1_mask.png"]),
        "good/9.png": ("good", []),
    }
    assert dataset.problems == ("bad/0_mask.png: masks/0.png is the mask; left out",)
    assert dataset.notes == ("masks beside their images: 1, first bad/1_mask.png of bad/1.png",)


def test_a_mask_may_have_the_name_of_its_image_with_another_extension(tmp_path: Path) -> None:
    draw(tmp_path, "good/0.jpg", "bad/1.jpg", "bad/2.png", "bad/3.jpg", "bad/3.bmp")
    draw(tmp_path / "x", "mask.png")
    Image.open(tmp_path / "x/mask.png").save(tmp_path / "bad/1.png")
    Image.open(tmp_path / "x/mask.png").save(tmp_path / "bad/2.jpg")
    (tmp_path / "x/mask.png").unlink()
    dataset = read_dataset(tmp_path)
    _, test = summary(dataset)[tmp_path.name]
    assert test["bad/1.jpg"] == ("bad", ["bad/1.png"])
    assert test["bad/2.png"] == ("bad", ["bad/2.jpg"])  # whatever the format
    assert {"bad/3.jpg", "bad/3.bmp"} <= set(test)
    assert sum("neither is clearly a mask" in problem for problem in dataset.problems) == 2


def test_a_mask_without_its_image_among_masks_is_not_an_image(tmp_path: Path) -> None:
    draw(tmp_path, "good/0.png", "bad/1.png", "bad/1_GT.png", "bad/2_GT.png")
    dataset = read_dataset(tmp_path)
    assert sorted(summary(dataset)[tmp_path.name][1]) == ["bad/1.png", "good/0.png"]
    assert dataset.problems == ("bad/2_GT.png: mask without an image; left out",)


@pytest.mark.parametrize(
    ("train", "test", "masks", "good"),
    [("Train", "Test", "Ground_Truth", "Good"), ("TRAIN", "TEST", "MASKS", "OK"), ("training", "Testing", "gt", "ok")],
)
def test_names_count_in_any_case(tmp_path: Path, train: str, test: str, masks: str, good: str) -> None:
    draw(tmp_path, f"a b/{train}/{good}/0.png", f"a b/{test}/{good}/1.png", f"a b/{test}/Crack/2.png")
    draw(tmp_path, f"a b/{masks}/crack/2_Mask.png")
    assert summary(read_dataset(tmp_path))["a b"] == (
        [f"a b/{train}/{good}/0.png"],
        {
            f"a b/{test}/{good}/1.png": ("good", []),
            f"a b/{test}/Crack/2.png": ("Crack", [f"a b/{masks}/crack/2_Mask.png"]),
        },
    )


@pytest.mark.parametrize("name", ["ok", "good", "normal", "mask", "test", "Train", "ground_truth", "gt", "val"])
@pytest.mark.parametrize("shape", ["mvtec", "labels"])
def test_an_object_may_be_called_like_a_keyword(tmp_path: Path, name: str, shape: str) -> None:
    paths = (
        ["train/good/0.png", "test/good/1.png", "test/crack/2.png"]
        if shape == "mvtec"
        else ["good/1.png", "crack/2.png"]
    )
    for item in ("bolt", name):
        draw(tmp_path, *(f"{item}/{path}" for path in paths))
    dataset = read_dataset(tmp_path)
    assert sorted(item.name for item in dataset.objects) == sorted(["bolt", name])
    assert all(sorted(image.label for image in item.test) == [0, 1] for item in dataset.objects)
    assert dataset.problems == ()


def test_good_images_may_be_in_several_folders(tmp_path: Path) -> None:
    names = ("good", "good_2", "Good - Copy", "OK (2)", "good_train", "no_defect", "normal_batch3", "pass")
    draw(tmp_path, *(f"{name}/{number}.png" for number, name in enumerate(names)), "crack/9.png")
    dataset = read_dataset(tmp_path)
    (item,) = dataset.objects
    assert [path.parent.name for path in item.train_good] == ["good_train"]
    assert sorted(image.path.parent.name for image in item.test if not image.label) == sorted(
        set(names) - {"good_train"}
    )
    assert [image.defect for image in item.test if image.label] == ["crack"]
    assert "read as good images" in dataset.notes[0]


def test_folders_that_may_be_good_are_refused_by_name(tmp_path: Path) -> None:
    draw(tmp_path, "nut/good/0.png", "nut/good_scratch/1.png", "nut/reference/2.png", "nut/crack/3.png")
    with pytest.raises(InputError, match=r"not clear whether .*: nut/good_scratch, nut/reference; rename"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("name", ["val", "Valid", "validation"])
def test_validation_has_several_names(tmp_path: Path, name: str) -> None:
    draw(tmp_path, "train/good/0.png", f"{name}/good/1.png", "test/good/2.png", "test/bad/3.png")
    (item,) = read_dataset(tmp_path).objects
    assert [path.name for path in item.validation_good] == ["1.png"]


def test_without_a_test_split_the_defects_of_validation_are_tested(tmp_path: Path) -> None:
    draw(tmp_path, "train/good/0.png", "val/good/1.png", "val/bad/2.png")
    dataset = read_dataset(tmp_path)
    assert [image.path.name for image in dataset.objects[0].test] == ["2.png", "1.png"]
    assert "no test split" in dataset.notes[0]


def test_channels_of_an_image(tmp_path: Path) -> None:
    for split, label in (("train", "good"), ("test", "good"), ("test", "hole")):
        draw(tmp_path, *(f"nut/{split}/{label}/{channel}/000.png" for channel in ("rgb", "xyz", "gt")))
    dataset = read_dataset(tmp_path)
    train, test = summary(dataset)["nut"]
    assert train == ["nut/train/good/rgb/000.png"]
    assert test == {
        "nut/test/good/rgb/000.png": ("good", ["nut/test/good/gt/000.png"]),
        "nut/test/hole/rgb/000.png": ("hole", ["nut/test/hole/gt/000.png"]),
    }
    assert sorted(dataset.problems) == [
        f"nut/{label}/xyz: a channel beside the images; left out" for label in ("test/good", "test/hole", "train/good")
    ]


def test_numbered_masks_of_an_image_are_combined(tmp_path: Path) -> None:
    draw(tmp_path / "a", "good/0.png", "bad/1.png", "bad/1_mask_1.png", "bad/1_mask_2.png")
    draw(tmp_path / "b", "good/0.png", "bad/1.png", "masks/bad/1_mask1.png", "masks/bad/1_mask2.png")
    for root, count in (("a", 2), ("b", 2)):
        dataset = read_dataset(tmp_path / root)
        assert [len(image.mask_paths) for image in dataset.objects[0].test] == [count, 0]
        assert dataset.problems == ()


@pytest.mark.parametrize("folder", ["images", "rgb", "Images"])
def test_images_and_masks_may_be_beside_each_other(tmp_path: Path, folder: str) -> None:
    draw(tmp_path, f"nut/{folder}/good/0.png", f"nut/{folder}/bad/1.png", "nut/Masks/bad/1.png")
    dataset = read_dataset(tmp_path)
    assert summary(dataset)["nut"][1][f"nut/{folder}/bad/1.png"] == ("bad", ["nut/Masks/bad/1.png"])
    draw(tmp_path / "inside", "good/images/0.png", "bad/images/1.png", "bad/masks/1.png", "good/masks/0.png")
    _, test = summary(read_dataset(tmp_path / "inside"))["inside"]
    assert test == {
        "bad/images/1.png": ("bad", ["bad/masks/1.png"]),
        "good/images/0.png": ("good", ["good/masks/0.png"]),
    }


@pytest.mark.parametrize("name", ["label", "labels", "Label", "msk", "annotated_images", "Annotations"])
def test_folders_of_other_names_contain_masks_if_these_look_so(tmp_path: Path, name: str) -> None:
    draw(tmp_path / "x", "mask.png")
    for path in (f"a/{name}/bad/0.png", f"b/bad/{name}/0.png", f"c/bad/{name}/0.png"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes((tmp_path / "x/mask.png").read_bytes())
    draw(tmp_path, "a/good/0.png", "a/bad/0.png", "b/good/0.png", "b/bad/0.png", "c/good/img/0.png", "c/bad/img/0.png")
    for item, mask in (("a", f"{name}/bad/0.png"), ("b", f"bad/{name}/0.png"), ("c", f"bad/{name}/0.png")):
        dataset = read_dataset(tmp_path / item)
        assert [mask for _, (_, mask) in sorted(summary(dataset)[item][1].items())] == [[mask], []]
        assert dataset.problems == ()


@pytest.mark.parametrize("name", ["label", "annotated"])
def test_folders_of_other_names_are_labels_if_they_contain_images(tmp_path: Path, name: str) -> None:
    draw(tmp_path, "good/0.png", "bad/0.png", "x/0.jpg")
    (tmp_path / "x").rename(tmp_path / name)
    test = summary(read_dataset(tmp_path))[tmp_path.name][1]
    assert test[f"{name}/0.jpg"] == (name, [])


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_images_of_more_than_8_bits_do_not_look_like_masks(tmp_path: Path, kind: type) -> None:
    draw(tmp_path, "good/0.png", "bad/0.png")
    (tmp_path / "label").mkdir()
    for name, largest in (("0", 4096), ("1", 65535)):
        pixels = np.random.default_rng(0).integers(0, largest, (12, 12)).astype(kind)
        Image.fromarray(pixels).save(tmp_path / f"label/{name}.tif")
    assert len(summary(read_dataset(tmp_path))[tmp_path.name][1]) == 4


def test_a_folder_that_repeats_labels_contains_masks(tmp_path: Path) -> None:
    draw(tmp_path, "good/0.png", "bad/0.png", "annotated/bad/0.png")
    assert summary(read_dataset(tmp_path))[tmp_path.name][1]["bad/0.png"] == ("bad", ["annotated/bad/0.png"])


@pytest.mark.parametrize("unused", ["dev", "train/images", "val/rgb", "train/masks", "results"])
def test_folders_of_images_that_are_not_read_are_named(tmp_path: Path, unused: str) -> None:
    draw(tmp_path, "nut/train/good/0.png", "nut/test/good/1.png", "nut/test/crack/2.png", f"nut/{unused}/x/3.png")
    (tmp_path / "nut/empty").mkdir()
    if "/" in unused:
        draw(tmp_path, f"nut/{unused.partition('/')[0]}/good/4.png")
    dataset = read_dataset(tmp_path)
    assert dataset.problems == (f"nut/{unused}: no split, label or masks; its images are left out",)


@pytest.mark.parametrize("train", ["nut/good/0.png", "nut/0.png"])
def test_splits_above_objects_are_refused(tmp_path: Path, train: str) -> None:
    draw(tmp_path, f"train/{train}", "test/nut/good/1.png", "test/nut/crack/2.png")
    with pytest.raises(InputError, match=r"train and test contain objects .*: nut/train, nut/test"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("train", ["train", "train/images"])
def test_a_split_may_have_folders_of_images_and_masks(tmp_path: Path, train: str) -> None:
    draw(tmp_path, f"n/{train}/good/0.png", "n/test/images/good/1.png", "n/test/images/bad/2.png")
    draw(tmp_path, "n/test/masks/bad/2.png")
    dataset = read_dataset(tmp_path)
    assert summary(dataset)["n"] == (
        [f"n/{train}/good/0.png"],
        {
            "n/test/images/bad/2.png": ("bad", ["n/test/masks/bad/2.png"]),
            "n/test/images/good/1.png": ("good", []),
        },
    )
    assert dataset.problems == ()


def test_a_folder_of_masks_may_be_named_after_its_label(tmp_path: Path) -> None:
    draw(tmp_path, "good/0.png", "crack/1.png", "crack_mask/1.png")
    assert summary(read_dataset(tmp_path))[tmp_path.name][1]["crack/1.png"] == ("crack", ["crack_mask/1.png"])


def test_results_system_folders_and_thumbnails_are_left_out_and_named(tmp_path: Path) -> None:
    draw(tmp_path, "nut/train/good/0.png", "nut/test/good/1.png", "nut/test/bad/2.png")
    draw(tmp_path, "nut/test/bad/@eaDir/2.png/thumb.jpg", "nut/#recycle/good/9.png", "@eaDir/good/9.png")
    draw(tmp_path, "nut/test/out/maps/2.png", "nut/test/bad/out/maps/3.png")
    for folder in ("nut/test/out", "nut/test/bad/out"):
        (tmp_path / folder / "run.json").write_text('{"versions": {"aprilcli": "1"}}')
    dataset = read_dataset(tmp_path)
    (item,) = dataset.objects
    assert [image.path.name for image in item.test] == ["2.png", "1.png"]
    assert dict(dataset.left_out) == {
        "@eaDir/": LeftOut.system,
        "nut/#recycle/": LeftOut.system,
        "nut/test/out/": LeftOut.results,
        "nut/test/bad/@eaDir/": LeftOut.system,
        "nut/test/bad/out/maps/": LeftOut.results,
    }
    assert len(dataset.other_files) == 0 or "run.json" in dataset.other_files[0]


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("nut/test/crack/latest", "."),
        ("nut/test/crack/up", "../.."),
        ("nut/test/alias", "crack"),
        ("nut/test/again", "."),
        ("nut/test/more", "../train/good"),
        ("copy", "nut"),
        ("self", "."),
        ("nut/train/good/a", "."),
    ],
)
@pytest.mark.parametrize("follow", [False, True])
def test_a_link_back_does_not_multiply_images(tmp_path: Path, link: str, target: str, follow: bool) -> None:
    draw(tmp_path, "nut/train/good/0.png", "nut/test/good/1.png", "nut/test/crack/2.png")
    expected = summary(read_dataset(tmp_path))
    (tmp_path / link).symlink_to(target)
    (tmp_path / f"{link}2").symlink_to(target)
    dataset = read_dataset(tmp_path, follow=follow)
    assert summary(dataset) == expected
    named = [*dataset.problems, *(name for name, _ in dataset.left_out)]
    assert follow or any(link in line for line in named)


def test_links_to_folders_elsewhere_are_entered_as_labels_and_inside_labels_with_follow(tmp_path: Path) -> None:
    draw(tmp_path / "store", "a/0.png", "b/1.png", "c/2.png")
    draw(tmp_path / "set", "nut/test/good/3.png", "nut/test/crack/4.png")
    (tmp_path / "set/nut/test/dent").symlink_to(tmp_path / "store/a")
    (tmp_path / "set/nut/test/crack/more").symlink_to(tmp_path / "store/b")
    names: dict[bool, set[str]] = {False: set(), True: set()}
    for follow in names:
        (item,) = read_dataset(tmp_path / "set", follow=follow).objects
        names[follow] = {f"{image.defect} {image.path.name}" for image in item.test}
    assert names[False] == {"good 3.png", "crack 4.png", "dent 0.png"}
    assert names[True] == {*names[False], "crack 1.png"}


def test_names_pair_in_both_unicode_forms(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Riß größe") for form in ("NFC", "NFD"))
    draw(tmp_path, "n/test/good/0.png", f"n/test/{composed}/{composed}.png", f"n/test/{decomposed}/2.png")
    draw(tmp_path, f"n/ground_truth/{decomposed}/{decomposed}_mask.png", f"n/ground_truth/{composed}/2_mask.png")
    dataset = read_dataset(tmp_path)
    assert dataset.problems == ()
    assert {(i.defect, len(i.mask_paths)) for i in dataset.objects[0].test if i.label} == {(composed, 1)}


def test_other_files_are_one_line_after_all_problems(tmp_path: Path) -> None:
    draw(tmp_path, *(f"p{n}/{path}" for n in range(5) for path in ("train/good/0.png", "test/good/1.png")))
    draw(tmp_path, "p4/test/zz/2.png", "p0/test/zz/2.png", "p0/ground_truth/zz/2_mask.png", "p4/ground_truth/zz/3.png")
    for folder, _, _ in os.walk(tmp_path):
        for name in ("Thumbs.db", "desktop.ini"):
            (Path(folder) / name).write_text("x")
    dataset = read_dataset(tmp_path)
    assert len(dataset.problems) == 2
    assert len(dataset.other_files) == 1
    assert "files that are not images, first p0/" in dataset.other_files[0]
