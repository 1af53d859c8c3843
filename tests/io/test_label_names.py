"""What names of folders and files mean in a labeled folder."""

import unicodedata

import pytest

from aprilcli.io.label_names import Label, fold, judge, mask_rank, masked_names, split_in, split_of

GOOD = [
    "good",
    "Good",
    "GOOD",
    "ok",
    "OK",
    "normal",
    "good_2",
    "good-3",
    "good4",
    "Good~-",
    "Good~-~Copy",
    "OK~(2)",
    "good_train",
    "good_test",
    "no_defect",
    "no~defects",
    "NoDefect",
    "without_defects",
    "defect-free",
    "DefectFree",
    "defectfree",
    "non_defective",
    "normal_batch3",
    "pass",
    "passed",
    "okay",
    "ok_parts",
    "good_images",
    "not_defective",
    "flawless",
    "Good~(copy)~2",
    "test_good",
    "normal.old",
    "goodparts",
    "GoodParts",
    "testgood",
    "okparts",
    "good~-~Kopie",
    "Good(2)",
    "IO",
    "i.O",
    "i.O.",
    "iO_2",
    "IO_train",
    "accept",
    "accepted",
    "conforming",
]
DEFECTS = [
    "crack",
    "bad",
    "ng",
    "NG",
    "ko",
    "abnormal",
    "anomaly",
    "defect",
    "defects",
    "not_ok",
    "notok",
    "no_good",
    "NotGood",
    "non-normal",
    "nok",
    "fail",
    "failed",
    "combined",
    "thread_side",
    "scratch_2",
    "nogood",
    "hook",
    "broken",
    "books",
    "bypass",
    "NIO",
    "n.i.O",
    "not~accepted",
    "nonconforming",
    "non-conforming",
    "ion",
    "unknown_defect",
]
UNCLEAR = [
    "good_scratch",
    "ok_with_dent",
    "normal_wear",
    "almost_good",
    "verygood",
    "goodness",
    "reference",
    "negative",
    "negatives",
    "pass_through",
    "unlabeled",
    "Unknown",
    "unsure",
    "background",
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [(name.replace("~", " "), Label.good) for name in GOOD]
    + [(name.replace("~", " "), Label.defect) for name in DEFECTS]
    + [(name, Label.unclear) for name in UNCLEAR],
)
def test_label_folders_are_judged_by_their_words(name: str, expected: Label) -> None:
    assert judge(name) == expected


def test_splits_and_folders_of_masks_count_in_any_case() -> None:
    assert [split_of(name) for name in ("Train", "TEST", "val", "Valid", "validation", "training", "tests")] == [
        *("train", "test", "validation", "validation", "validation", "train"),
        None,
    ]
    assert [split_in(name) for name in ("good_train", "Good-Test", "ok val", "good_2")] == [
        *("train", "test", "validation"),
        None,
    ]
    ranks = [mask_rank(name) for name in ("Ground_Truth", "ground truth", "Masks", "MASK", "gt")]
    assert ranks == sorted(rank for rank in ranks if rank is not None)
    assert all(mask_rank(name) is not None for name in ("mask_images", "BinaryMasks", "defect_masks", "GT_png"))
    assert [mask_rank(name) for name in ("masked", "face_mask", "crack_mask", "mask_tape")] == [None] * 4
    assert fold(unicodedata.normalize("NFD", "Düse")) == fold("DÜSE")


@pytest.mark.parametrize(
    "name",
    [
        "0_mask",
        "0_Mask",
        "0-GT",
        "0_gt",
        "0.label",
        "0 seg",
        "0_ground_truth",
        "mask_0",
        "GT-0",
        "0_masks",
        "0 (mask)",
        "0_mask_1",
        "0_mask2",
    ],
)
def test_masks_are_named_after_their_images(name: str) -> None:
    assert "0" in masked_names(name)


@pytest.mark.parametrize("name", ["0", "masked_0", "0_gtx", "mask", "_mask"])
def test_other_names_are_not_those_of_masks(name: str) -> None:
    assert masked_names(name) == []
