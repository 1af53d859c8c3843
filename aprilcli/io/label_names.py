"""What names in a labeled folder mean: splits, good images, folders of masks, and the masks of an image.

Names are compared without regard to case and Unicode form (NFC or NFD).
"""

from __future__ import annotations

import re
import unicodedata
from enum import Enum

from aprilcli.io.image_formats import has_image_extension

TRAIN, TEST, VALIDATION = "train", "test", "validation"
SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("test", "testing", "test_public"), TEST),
    **dict.fromkeys(("validation", "val", "valid"), VALIDATION),
}
_PERHAPS_MASKS = frozenset({"label", "labels", "msk", "msks", "annotated"})
# The first of these that an object has is used.
_MASK_FOLDERS = (
    *("groundtruth", "masks", "mask", "gt", "gts", "groundtruths", "seg", "segs", "segmentation", "segmentations"),
    *("annotation", "annotations"),
)
IMAGE_FOLDERS = frozenset({"rgb", "image", "images", "img", "imgs"})  # beside folders of channels; color is a defect
_MASK_WORD = r"(?:masks?|labels?|gt|ground[ _-]?truth|segm?|segmentation|annotation|msk)"
_NUMBER = r"(?P<number>[ _.-]?\d+)?"  # of several masks of an image
_MASK_OF = (
    re.compile(rf"(?P<image>.+?)[ _.(-]+{_MASK_WORD}\)?{_NUMBER}", re.IGNORECASE | re.DOTALL),
    re.compile(rf"{_MASK_WORD}[ _.-](?P<image>.+)", re.IGNORECASE | re.DOTALL),
)
_HAS_MASK_WORD = re.compile(rf"(?<![^\W\d_]){_MASK_WORD}(?![^\W\d_])", re.IGNORECASE)
_MASK_FOLDER_WORDS = frozenset({"mask", "masks", "gt", "groundtruth", "segmentation", "segmentations"})
_MASK_QUALIFIERS = frozenset(
    {"binary", "defect", "defects", "anomaly", "anomalies", "png", "bmp", "pixel", "seg", "annotated"}
)
_GOOD = frozenset(
    {"good", "normal", "ok", "okay", "pass", "passed", "passing", "flawless", "faultless", "clean", "intact", "nominal"}
    | {
        "healthy",
        "undamaged",
        "perfect",
        "fine",
        "acceptable",
        "accepted",
        "accept",
        "conforming",
        "golden",
        "nondefective",
    }
    | {"defectless", "io"}
    | {f"{flaw}free" for flaw in ("defect", "fault", "flaw", "error", "damage", "anomaly")}
    | {f"no{flaw}" for flaw in ("defect", "defects", "fault", "faults", "flaw", "flaws", "anomaly", "anomalies")}
)
_PERHAPS_GOOD = frozenset(
    {"reference", "references", "ref", "negative", "negatives", "neg", "background", "unlabeled", "unlabelled"}
    | {"unknown", "unsure", "uncertain", "unclear", "unclassified"}
)
_IN_ORDER = re.compile(r"^i\.? ?o(?![^\W\d_])", re.IGNORECASE)  # German "in Ordnung"
_FLAWS = frozenset(
    {"defect", "defects", "defective", "fault", "faults", "faulty", "flaw", "flaws", "flawed", "error", "errors"}
    | {"anomaly", "anomalies", "anomalous", "abnormal", "damage", "damages", "damaged", "bad", "ng", "issue", "issues"}
)
_NEGATIONS = frozenset({"no", "non", "not", "without", "zero", "un"})
# Words beside "good" that distinguish several folders of good images, as people and file managers name them.
_QUALIFIERS = frozenset(
    {"copy", "copies", "kopie", "copie", "copia", "batch", "batches", "lot", "set", "part", "parts", "piece", "pieces"}
    | {"image", "images", "img", "imgs", "photo", "photos", "pic", "pics", "picture", "pictures", "sample", "samples"}
    | {"example", "examples", "product", "products", "unit", "units", "item", "items", "case", "cases", "class", "of"}
    | {
        "new",
        "old",
        "more",
        "extra",
        "additional",
        "final",
        "all",
        "only",
        "other",
        "others",
        "rest",
        "data",
        "dataset",
    }
    | {"folder", "dir", "day", "week", "shift", "run", "series", "session", "cam", "camera", "line", "station"}
    | {"side", "left", "right", "top", "bottom", "front", "back", "view", "quality", "condition", "resized", "cropped"}
    | {"raw", "rgb", "color", "gray", "grey", "backup", "bak", "train", "training", "test", "testing", "val", "valid"}
    | {"validation", "the", "and", "a", "surface", "public"}
)
_WORDS = re.compile(r"[^\W\d_]+|\d+")
_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")


class Label(Enum):
    """What the name of a label folder says of its images."""

    good = "good"
    defect = "defect"
    unclear = "unclear"


def same_form(name: str) -> str:
    """Return a name in the Unicode form NFC."""
    return unicodedata.normalize("NFC", name)


def fold(name: str) -> str:
    """Return the form of a name that is compared: NFC, without case."""
    return same_form(same_form(name).casefold())


def split_of(name: str) -> str | None:
    """Return ``TRAIN``, ``TEST`` or ``VALIDATION`` for the name of a split; None for other names."""
    return SPLITS.get(fold(name))


def mask_rank(name: str) -> int | None:
    """Return the preference of a folder of masks, 0 first; None for the name of another folder.

    The last is that of names that may mean masks.
    """
    if may_be_masks(name):
        return len(_MASK_FOLDERS) + 1
    plain = re.sub(r"[\W_]+", "", fold(name))
    if plain in _MASK_FOLDERS:
        return _MASK_FOLDERS.index(plain)
    others = [word for word in _words(name) if word not in _MASK_FOLDER_WORDS]
    has_mask_word = len(others) < len(_words(name))
    is_mask = has_mask_word and all(word in _MASK_QUALIFIERS | _QUALIFIERS or word.isdigit() for word in others)
    return len(_MASK_FOLDERS) if is_mask else None


def may_be_masks(name: str) -> bool:
    """Return whether a folder contains masks only if its files look so: ``label``, ``msk``, ``annotated_images``."""
    words = _words(name)
    return bool(_PERHAPS_MASKS & set(words)) and all(
        word in _PERHAPS_MASKS | _MASK_QUALIFIERS | _QUALIFIERS or word.isdigit() for word in words
    )


def masked_names(stem: str) -> list[str]:
    """Return the names whose mask ``stem`` can be: ``0_mask``, ``0-GT`` and ``mask_0`` belong to ``0``."""
    return [match["image"] for pattern in _MASK_OF if (match := pattern.fullmatch(stem))]


def has_mask_word(stem: str) -> bool:
    """Return whether a word in the name of a file says that it is a mask: ``0mask``, ``mask``, ``0_label_new``."""
    return _HAS_MASK_WORD.search(_CAMEL_CASE.sub(" ", stem)) is not None


def core_words(stem: str) -> tuple[str, ...]:
    """Return the words that an image and its mask share: ``0`` for ``img_0``, ``0_rgb`` and ``0_annotated_mask``."""
    plain = _HAS_MASK_WORD.sub(" ", _CAMEL_CASE.sub(" ", stem))
    kind = _MASK_QUALIFIERS | IMAGE_FOLDERS | {"color", "colour"}
    return tuple(word for word in _words(plain) if word not in kind and not has_image_extension(f"0.{word}"))


def is_numbered_mask(stem: str) -> bool:
    """Return whether ``stem`` is one of several masks of an image: ``0_mask_1``, ``0_mask2``."""
    match = _MASK_OF[0].fullmatch(stem)
    return match is not None and match["number"] is not None


def judge(name: str) -> Label:
    """Return whether a label folder contains good images by its name.

    Good: a word for good images (``good``, ``OK``, ``passed``, ``no defect``, ``defect-free`` …), alone or with
    numbers, single letters and words that only distinguish folders (``good_2``, ``Good - Copy``, ``ok batch 3``,
    ``good_train``). A negated word (``not_ok``) is a defect. Unclear: such a word with any other (``good_scratch``), or
    a word that often means good images or none in particular (``reference``, ``negative``, ``unknown``). All other
    names are defects.
    """
    words = _words(_IN_ORDER.sub("io", name))
    others: list[str] = []
    good = negated = False
    position = 0
    while position < len(words):
        word, following = words[position], (words[position + 1] if position + 1 < len(words) else "")
        position += 1
        if (word in _NEGATIONS and following in _FLAWS) or (word in _FLAWS and following in ("free", "less")):
            good, position = True, position + 1
        elif word in _NEGATIONS and following in _GOOD:
            negated, position = True, position + 1
        elif word in _GOOD or _is_compound(word, _QUALIFIERS):
            good = True
        elif _is_compound(word, _NEGATIONS | {"ab"}):
            negated = True
        elif not (word in _QUALIFIERS or word.isdigit() or len(word) == 1):
            others.append(word)
    if negated:
        return Label.defect
    if good:
        return Label.unclear if others else Label.good
    perhaps = any(word.startswith(("good", "normal")) or word.endswith("good") for word in others)
    return Label.unclear if perhaps or (others and set(others) <= _PERHAPS_GOOD) else Label.defect


def _words(name: str) -> list[str]:
    return [word.casefold() for word in _WORDS.findall(_CAMEL_CASE.sub(" ", same_form(name)))]


def _is_compound(word: str, others: frozenset[str]) -> bool:
    """Return whether a word is a word for good and one of ``others`` without a space: ``goodparts``, ``notok``."""
    return any(
        (word.startswith(good) and word.removeprefix(good) in others)
        or (word.endswith(good) and word.removesuffix(good) in others)
        for good in ("good", "normal", "ok")
    )


def split_in(name: str) -> str | None:
    """Return the split that a word in the name of a label folder tells: ``good_train``, ``normal_test``."""
    words = _WORDS.findall(_CAMEL_CASE.sub(" ", same_form(name)))
    return next((split for word in reversed(words) if (split := split_of(word))), None)
