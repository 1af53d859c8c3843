"""Every layout on a small tree; pairing by name; problems are reported; masks read and checked."""

from pathlib import Path

import numpy as np
import pytest
from helpers import draw_image, draw_mask
from PIL import Image

from aprilcli.defaults import LAYOUTS
from aprilcli.errors import InputError, OptionError
from aprilcli.io.datasets import read_dataset
from aprilcli.io.masks import read_mask

BLANK = np.zeros((4, 6), np.uint8)


def grow(root, *paths):
    """Make a tree of 6 × 4 images; what is named mask or lies below a folder of masks has its first pixel set."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = BLANK.copy()
        pixels[0, 0] = 255 if any(word in path for word in ("ground_truth", "ask")) else 0
        Image.fromarray(pixels).save(file)


def read(root, layout="auto"):
    """Read a tree that must have no problems; return layout and {object: (train, validation, {test image: ...})}."""
    dataset = read_dataset(root, layout)
    assert (dataset.problems, dataset.other_files) == ((), ())
    assert dataset.root == root
    return dataset.layout, {
        item.name: (
            [relative(root, path) for path in item.train_good],
            [relative(root, path) for path in item.validation_good],
            {
                relative(root, image.path): (image.defect, image.label, [relative(root, m) for m in image.mask_paths])
                for image in item.test
            },
        )
        for item in dataset.objects
    }


def relative(root, path):
    return path.relative_to(root).as_posix()


def test_images_are_known_by_the_extensions_that_scan_knows(tmp_path):
    grow(tmp_path, "nut/good/0.pgm", "nut/good/1.PPM", "nut/bad/0.pgm", "nut/masks/bad/0.png")
    _, objects = read(tmp_path)
    assert list(objects["nut"][2]) == ["nut/bad/0.pgm", "nut/good/0.pgm", "nut/good/1.PPM"]


def problems(root, layout="auto"):
    dataset = read_dataset(root, layout)
    return [*dataset.problems, *dataset.other_files]


MVTEC = [
    "nut/train/good/000.png",
    "nut/train/good/001.png",
    "nut/test/good/000.png",
    "nut/test/bent/000.png",
    "nut/test/bent/001.png",
    "nut/test/scratch/000.png",
    "nut/ground_truth/bent/000_mask.png",
    "nut/ground_truth/bent/001_mask.png",
    "nut/ground_truth/scratch/000_mask.png",
]


def test_mvtec(tmp_path):
    grow(tmp_path, *MVTEC, "bolt/train/good/7.png", "bolt/test/good/8.png")
    (tmp_path / "readme.txt").write_text("beside the objects")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "nut/test/bent/.DS_Store").write_text("")
    layout, objects = read(tmp_path)
    assert layout == "mvtec"
    assert objects == {
        "bolt": (["bolt/train/good/7.png"], [], {"bolt/test/good/8.png": ("good", 0, [])}),
        "nut": (
            ["nut/train/good/000.png", "nut/train/good/001.png"],
            [],
            {
                "nut/test/bent/000.png": ("bent", 1, ["nut/ground_truth/bent/000_mask.png"]),
                "nut/test/bent/001.png": ("bent", 1, ["nut/ground_truth/bent/001_mask.png"]),
                "nut/test/good/000.png": ("good", 0, []),
                "nut/test/scratch/000.png": ("scratch", 1, ["nut/ground_truth/scratch/000_mask.png"]),
            },
        ),
    }


def test_one_object_alone_and_sets_of_sets(tmp_path, monkeypatch):
    grow(tmp_path, *(f"set_a/{path}" for path in MVTEC), *(f"set_b/{path}" for path in MVTEC))
    alone = read_dataset(tmp_path / "set_a" / "nut")
    assert [(item.name, item.category, len(item.test)) for item in alone.objects] == [("nut", "nut", 4)]
    both = read_dataset(tmp_path)
    assert [(item.name, item.category) for item in both.objects] == [("set_a/nut", "nut"), ("set_b/nut", "nut")]
    monkeypatch.chdir(tmp_path / "set_a" / "nut")
    assert [item.name for item in read_dataset(Path()).objects] == ["nut"]


def test_visa_in_mvtecs_form_has_masks_without_suffix(tmp_path):
    grow(
        tmp_path,
        "candle/train/good/0000.JPG",
        "candle/test/good/0001.JPG",
        "candle/test/bad/000.JPG",
        "candle/ground_truth/bad/000.png",
    )
    layout, objects = read(tmp_path)
    assert layout == "mvtec"
    assert objects["candle"][2] == {
        "candle/test/bad/000.JPG": ("bad", 1, ["candle/ground_truth/bad/000.png"]),
        "candle/test/good/0001.JPG": ("good", 0, []),
    }


LOCO = [
    "box/train/good/000.png",
    "box/validation/good/000.png",
    "box/test/good/000.png",
    "box/test/logical_anomalies/000.png",
    "box/test/structural_anomalies/000.png",
    "box/ground_truth/logical_anomalies/000/000.png",
    "box/ground_truth/logical_anomalies/000/001.png",
    "box/ground_truth/structural_anomalies/000/000.png",
]


def test_loco(tmp_path):
    grow(tmp_path, *LOCO)
    layout, objects = read(tmp_path)
    assert layout == "loco"
    assert objects["box"] == (
        ["box/train/good/000.png"],
        ["box/validation/good/000.png"],
        {
            "box/test/good/000.png": ("good", 0, []),
            "box/test/logical_anomalies/000.png": (
                "logical_anomalies",
                1,
                [f"box/ground_truth/logical_anomalies/000/00{i}.png" for i in (0, 1)],
            ),
            "box/test/structural_anomalies/000.png": (
                "structural_anomalies",
                1,
                ["box/ground_truth/structural_anomalies/000/000.png"],
            ),
        },
    )


def test_several_masks_are_joined(tmp_path):
    grow(tmp_path, *LOCO)
    second = BLANK.copy()
    second[3, 5] = 2
    Image.fromarray(second).save(tmp_path / "box/ground_truth/logical_anomalies/000/001.png")
    image = next(i for i in read_dataset(tmp_path).objects[0].test if i.defect == "logical_anomalies")
    assert np.argwhere(read_mask(image, (4, 6))).tolist() == [[0, 0], [3, 5]]


def test_btad(tmp_path):
    grow(
        tmp_path,
        "01/train/ok/0000.bmp",
        "01/test/ok/0000.bmp",
        "01/test/ko/0000.bmp",
        "01/ground_truth/ko/0000.png",
        "03/train/ok/0000.bmp",
        "03/test/ok/0001.bmp",
        "03/test/ko/0000.bmp",
        "03/ground_truth/ko/0000.bmp",
    )
    layout, objects = read(tmp_path)
    assert layout == "btad"
    assert objects["01"] == (
        ["01/train/ok/0000.bmp"],
        [],
        {
            "01/test/ko/0000.bmp": ("ko", 1, ["01/ground_truth/ko/0000.png"]),
            "01/test/ok/0000.bmp": ("good", 0, []),
        },
    )
    assert objects["03"][2]["03/test/ko/0000.bmp"] == ("ko", 1, ["03/ground_truth/ko/0000.bmp"])


def test_mvtec_ad_2(tmp_path):
    grow(
        tmp_path,
        "can/train/good/000_regular.png",
        "can/validation/good/000_regular.png",
        "can/test_public/good/000_regular.png",
        "can/test_public/bad/000_regular.png",
        "can/test_public/bad/000_overexposed.png",
        "can/test_public/ground_truth/bad/000_regular_mask.png",
        "can/test_public/ground_truth/bad/000_overexposed_mask.png",
        "can/test_private/000_regular.png",
    )
    layout, objects = read(tmp_path)
    assert layout == "ad2"
    masks = "can/test_public/ground_truth/bad/000"
    assert objects["can"] == (
        ["can/train/good/000_regular.png"],
        ["can/validation/good/000_regular.png"],
        {
            "can/test_public/bad/000_overexposed.png": ("bad", 1, [f"{masks}_overexposed_mask.png"]),
            "can/test_public/bad/000_regular.png": ("bad", 1, [f"{masks}_regular_mask.png"]),
            "can/test_public/good/000_regular.png": ("good", 0, []),
        },
    )


VISA = """object,split,label,image,mask
pcb1,train,normal,pcb1/Data/Images/Normal/0001.JPG,
pcb1,test,normal,pcb1/Data/Images/Normal/0000.JPG,
pcb1,test,anomaly,pcb1/Data/Images/Anomaly/000.JPG,pcb1/Data/Masks/Anomaly/000.png
candle,train,normal,candle/Data/Images/Normal/0000.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png
"""


def grow_visa(root, table=VISA):
    grow(root, *(cell for line in VISA.splitlines()[1:] for cell in line.split(",")[3:] if cell))
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text(table, encoding="utf-8")


def test_visa_as_published(tmp_path):
    grow_visa(tmp_path)
    layout, objects = read(tmp_path)
    assert layout == "visa"
    assert list(objects) == ["candle", "pcb1"]
    assert objects["pcb1"] == (
        ["pcb1/Data/Images/Normal/0001.JPG"],
        [],
        {
            "pcb1/Data/Images/Anomaly/000.JPG": ("bad", 1, ["pcb1/Data/Masks/Anomaly/000.png"]),
            "pcb1/Data/Images/Normal/0000.JPG": ("good", 0, []),
        },
    )
    alone = read_dataset(tmp_path / "pcb1")
    assert [(item.name, len(item.train_good), len(item.test)) for item in alone.objects] == [("pcb1", 1, 2)]


def test_differences_between_visas_table_and_disk_are_problems(tmp_path):
    table = VISA + "candle,train,anomaly,candle/Data/Images/Normal/0000.JPG,\n"
    table = table.replace("pcb1,test,normal", "pcb1,train,anomaly") + "candle,test,normal,candle/Data/Images/x.JPG,\n"
    grow_visa(tmp_path, table)
    grow(tmp_path, "candle/Data/Images/Normal/0009.JPG", "candle/Data/Masks/Anomaly/009.png")
    (tmp_path / "pcb1/Data/Masks/Anomaly/000.png").unlink()
    assert problems(tmp_path) == [
        "candle/Data/Images/Normal/0000.JPG: listed twice; the first entry is used",
        "candle/Data/Images/x.JPG: listed but missing; left out",
        "candle/Data/Images/Normal/0009.JPG: not listed in 1cls.csv; left out",
        "candle/Data/Masks/Anomaly/009.png: not listed in 1cls.csv; left out",
        "pcb1/Data/Masks/Anomaly/000.png: listed as mask of pcb1/Data/Images/Anomaly/000.JPG but missing; "
        "its pixels are left out",
        "pcb1/Data/Images/Normal/0000.JPG: anomaly in split train; left out",
    ]


@pytest.mark.parametrize("table", ["object,split,image\na,b,c\n", VISA.replace("anomaly", "odd"), VISA + "pcb1,test\n"])
def test_visas_table_is_checked(tmp_path, table):
    grow_visa(tmp_path, table)
    with pytest.raises(InputError, match=r"1cls\.csv line \d: needs object,split,label,image,mask"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("image", ["/abs/0.png", "pcb1/../../0.png", "candle/Data/Images/Normal/0000.JPG"])
def test_visas_table_stays_in_the_objects_folder(tmp_path, image):
    grow_visa(tmp_path, VISA + f"pcb1,test,normal,{image},\n")
    with pytest.raises(InputError, match=r"1cls\.csv line \d: .* is not in the folder pcb1"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("masks", ["ground_truth", "masks", "mask"])
@pytest.mark.parametrize("good", ["good", "Normal", "OK"])
def test_a_folder_per_label(tmp_path, good, masks):
    grow(
        tmp_path,
        f"{good}/a.png",
        "dent/a.jpeg",
        "dent/more/b.png",
        "scratch/c.tif",
        f"{masks}/dent/a.png",
        f"{masks}/dent/more/b_mask.png",
        f"{masks}/c.bmp",
    )
    layout, objects = read(tmp_path)
    assert layout == "folder"
    assert objects == {
        tmp_path.name: (
            [],
            [],
            {
                f"{good}/a.png": ("good", 0, []),
                "dent/a.jpeg": ("dent", 1, [f"{masks}/dent/a.png"]),
                "dent/more/b.png": ("dent", 1, [f"{masks}/dent/more/b_mask.png"]),
                "scratch/c.tif": ("scratch", 1, [f"{masks}/c.bmp"]),
            },
        )
    }


def test_folders_without_masks_and_with_good_training_images(tmp_path):
    grow(tmp_path, "a/train/OK/1.png", "a/test/OK/2.png", "a/test/NG/3.png")
    grow(tmp_path, "b/normal/1.png", "b/normal_test/2.png", "b/abnormal/3.png")
    grow(tmp_path, "c/train/good/1.png", "c/good/2.png", "c/bad/3.png")
    layout, objects = read(tmp_path)
    assert layout == "folder"
    assert objects["a"] == (
        ["a/train/OK/1.png"],
        [],
        {"a/test/NG/3.png": ("NG", 1, []), "a/test/OK/2.png": ("good", 0, [])},
    )
    assert objects["b"] == (
        ["b/normal/1.png"],
        [],
        {"b/abnormal/3.png": ("abnormal", 1, []), "b/normal_test/2.png": ("good", 0, [])},
    )
    assert objects["c"] == (
        ["c/train/good/1.png"],
        [],
        {"c/bad/3.png": ("bad", 1, []), "c/good/2.png": ("good", 0, [])},
    )


def test_pairing_is_by_name_never_by_order(tmp_path):
    grow(tmp_path, "good/0.png", *(f"bad/{n}.png" for n in (1, 2, 10)), *(f"mask/bad/{n}.png" for n in (2, 10, 11)))
    dataset = read_dataset(tmp_path)
    pairs = {image.path.name: [mask.name for mask in image.mask_paths] for image in dataset.objects[0].test}
    assert pairs == {"0.png": [], "1.png": [], "2.png": ["2.png"], "10.png": ["10.png"]}
    assert list(dataset.problems) == [
        "mask/bad/11.png: mask without an image; left out",
        "bad/1.png: labeled bad but without a mask; its pixels are left out",
    ]


def test_a_mask_beside_its_image_has_no_mask(tmp_path):
    grow(tmp_path, "good/0.png", "bad/a.png", "bad/a_mask.png", "mask/bad/a_mask.png", "mask/bad/a_mask_mask.png")
    assert problems(tmp_path) == [
        "mask/bad/a_mask_mask.png: mask without an image; left out",
        "bad/a_mask.png: mask/bad/a_mask.png is the mask; left out",
    ]


def test_unclear_pairs_are_not_guessed(tmp_path):
    grow(
        tmp_path,
        *MVTEC,
        "nut/test/bent/001.jpg",
        "nut/ground_truth/scratch/000.bmp",
        "nut/ground_truth/hole/000_mask.png",
        "nut/ground_truth/bent/000/part.png",
    )
    same = "another image beside it has the same name and neither is clearly a mask; both are used"
    assert problems(tmp_path) == [
        f"nut/test/bent/001.jpg: {same}",
        f"nut/test/bent/001.png: {same}",
        "nut/ground_truth/bent/001_mask.png: mask fits nut/test/bent/001.jpg and nut/test/bent/001.png; "
        "left out, rename one of the images",
        "nut/ground_truth/hole/000_mask.png: mask without an image; left out",
        "nut/test/bent/000.png: has several masks (nut/ground_truth/bent/000_mask.png, "
        "nut/ground_truth/bent/000/part.png); none is used, keep one or put all in one folder",
        "nut/test/scratch/000.png: has several masks (nut/ground_truth/scratch/000.bmp, "
        "nut/ground_truth/scratch/000_mask.png); none is used, keep one or put all in one folder",
    ]
    assert not any(image.mask_paths for image in read_dataset(tmp_path).objects[0].test)


def test_flat_masks_do_not_choose_between_labels(tmp_path):
    grow(tmp_path, "good/0.png", "dent/1.png", "hole/1.png", "masks/1.png")
    assert problems(tmp_path) == [
        "masks/1.png: mask fits dent/1.png and hole/1.png; left out, rename one of the images"
    ]


def test_unused_files_are_problems(tmp_path):
    grow(tmp_path, *MVTEC, "nut/train/bent/0.png", "nut/test/7.png", "nut/masks/x.png")
    (tmp_path / "results").mkdir()
    (tmp_path / "nut/test/bent/notes.txt").write_text("")
    (tmp_path / "nut/test/bent/raw.heic").write_text("")
    assert problems(tmp_path) == [
        "results: not an object of layout mvtec; left out",
        "nut/masks: masks are read from nut/ground_truth instead; left out",
        "nut/train/bent: training images that are not good; left out",
        "nut/test/7.png: an image outside the label folders; left out",
        "nut/test/bent/raw.heic: labeled bent but without a mask; its pixels are left out",
        "1 file that is not an image, first nut/test/bent/notes.txt; left out",
    ]


def test_layouts_can_be_forced(tmp_path):
    grow(tmp_path, *MVTEC)
    assert read(tmp_path, "loco")[0] == "loco"
    assert read(tmp_path, "folder") == ("folder", read(tmp_path, "mvtec")[1])
    for layout in ("btad", "ad2", "visa"):
        with pytest.raises(InputError, match=rf"no labeled folder \({layout}\)"):
            read_dataset(tmp_path, layout)
    with pytest.raises(OptionError, match=f"unknown layout coco; choose auto, {', '.join(LAYOUTS)}"):
        read_dataset(tmp_path, "coco")


def test_folders_without_or_with_several_layouts_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"looked for train/good.*found nothing"):
        read_dataset(tmp_path)
    grow(tmp_path, "images/1.png", "2.png")
    with pytest.raises(InputError, match=r"looked for train/good.*1cls\.csv.*found 2\.png, images/"):
        read_dataset(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        read_dataset(tmp_path / "2.png")
    grow(tmp_path, *MVTEC, "01/train/ok/0.png", "01/test/ko/1.png")
    with pytest.raises(InputError, match=r"01 is btad, .*nut is mvtec.*choose one layout"):
        read_dataset(tmp_path)


PUBLIC_DEFECTS = (
    *("broken_large", "broken_small", "contamination", "bent_wire", "cable_swap", "combined", "cut_inner_insulation"),
    *("cut_outer_insulation", "missing_cable", "missing_wire", "poke_insulation", "crack", "faulty_imprint", "poke"),
    *("scratch", "squeeze", "color", "cut", "hole", "metal_contamination", "thread", "print", "fold", "glue", "bent"),
    *(
        "flip",
        "pill_type",
        "manipulated_front",
        "scratch_head",
        "scratch_neck",
        "thread_side",
        "thread_top",
        "glue_strip",
    ),
    *("gray_stroke", "oil", "rough", "defective", "bent_lead", "cut_lead", "damaged_case", "misplaced", "broken_teeth"),
    *("fabric_border", "fabric_interior", "split_teeth", "squeezed_teeth", "liquid", "logical_anomalies"),
    *("structural_anomalies", "bend_and_parts_mismatch", "defective_painting", "major_rust", "total_rust", "anomaly"),
    *("parts_mismatch", "flattening", "scratches", "ko", "bad", "blowhole", "break", "fray", "uneven"),
)


@pytest.mark.parametrize("test", ["test/", ""])
def test_defects_of_public_data_sets_are_labels(tmp_path: Path, test: str) -> None:
    draw_image(tmp_path / "nut" / test / "good" / "0.png")
    for seed, name in enumerate(PUBLIC_DEFECTS):
        draw_image(tmp_path / "nut" / test / name / "0.png", seed)
        draw_mask(tmp_path / "nut" / "ground_truth" / name / "0_mask.png")
    dataset = read_dataset(tmp_path)
    assert dataset.problems == ()
    (nut,) = dataset.objects
    assert {image.defect for image in nut.test if image.label} == set(PUBLIC_DEFECTS)
    assert sum(bool(image.mask_paths) for image in nut.test) == len(PUBLIC_DEFECTS)
