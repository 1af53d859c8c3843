"""Captions of images: any object name, in a good or in an anomalous state."""

from functools import cache, lru_cache
from typing import Any

import open_clip
import torch
from defects import WORDS
from numpy.random import Generator
from products import KINDS

from aprilcli.core.prompts import ANOMALOUS_STATES, NORMAL_STATES, TEMPLATES

GENERIC = ("object", "product", "item", "part", "surface", "thing", "component", "sample", "piece", "material")
COLORS = ("red", "green", "blue", "grey", "black", "white", "yellow", "brown", "dark", "bright", "silver", "orange")
MATERIALS = ("metal", "steel", "plastic", "rubber", "ceramic", "painted", "stone", "textile", "brass", "glass")
CONTEXT = 40  # tokens; every sentence here is shorter


@cache
def tokenizer() -> Any:
    """open_clip's own byte-pair tokenizer, which needs no download."""
    return open_clip.SimpleTokenizer()


@cache
def _vocabulary() -> list[str]:
    """Whole words of the tokenizer, for names without a relation to the image."""
    ends = "</w>"
    words = [w.removesuffix(ends) for w in list(tokenizer().encoder)[2000:45000] if w.endswith(ends)]
    return [w for w in words if w.isascii() and w.isalpha() and len(w) > 2]


@lru_cache(maxsize=200_000)
def _tokens(sentence: str) -> torch.Tensor:
    tokens: torch.Tensor = tokenizer()([sentence], context_length=CONTEXT)[0]
    return tokens


def tokenize(sentences: list[str]) -> torch.Tensor:
    """Token numbers of N sentences, int64 [N, CONTEXT]."""
    return torch.stack([_tokens(s) for s in sentences])


def draw_name(rng: Generator, kind: str) -> tuple[str, bool]:
    """A name for a product, and whether it names the kind.

    Half of the names are true, some with a color or material in front. The others are generic words, random words or
    codes, so that the model learns one direction from good to anomalous for all names.
    """
    choice = rng.random()
    if choice < 0.5:
        name = str(rng.choice(KINDS[kind].names))
        if rng.random() < 0.4:
            name = f"{rng.choice(COLORS if rng.random() < 0.5 else MATERIALS)} {name}"
        return (name.replace(" ", "_") if rng.random() < 0.1 else name), True
    if choice < 0.68:
        return str(rng.choice(GENERIC)), False
    words = _vocabulary()
    picked = [words[int(i)] for i in rng.integers(len(words), size=int(rng.integers(1, 3)))]
    if rng.random() < 0.3:
        stem = str(rng.choice(KINDS[kind].names)).split()[-1] if rng.random() < 0.5 else picked[0]
        return f"{stem}{rng.choice(['_', ' ', '-'])}{int(rng.integers(0, 10 ** int(rng.integers(1, 6))))}", False
    return " ".join(picked), False


def sentence(rng: Generator, name: str, anomalous: bool, defects: list[str] | None = None) -> str:
    """One prompt about `name` in a state; half of the captions of drawn defects use the defect's own words."""
    states: tuple[str, ...] = ANOMALOUS_STATES if anomalous else NORMAL_STATES
    if anomalous and defects and rng.random() < 0.5:
        states = WORDS[str(rng.choice(defects))]
    return str(rng.choice(TEMPLATES)).format(str(rng.choice(states)).format(name))
