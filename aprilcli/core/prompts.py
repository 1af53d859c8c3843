"""The prompt ensembles of the paper: states × templates, encoded and averaged to two text features."""

from __future__ import annotations

import hashlib
import json

import torch
import torch.nn.functional as F

from aprilcli import __version__
from aprilcli.core.backbone import TextEncoder
from aprilcli.errors import OptionError
from aprilcli.io.cache import recall, remember
from aprilcli.types import MAX_OBJECT_NAME

CACHED = "text"  # the cache's files of this kind: a few kilobytes for each name and model, so they are never deleted

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ANOMALOUS_STATES = ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage")
# CLIP's ImageNet templates, without those that describe the object's condition.
TEMPLATES = (
    "a bad photo of a {}.",
    "a low resolution photo of the {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a bright photo of a {}.",
    "a dark photo of the {}.",
    "a photo of my {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a photo of one {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "a low resolution photo of a {}.",
    "a photo of a large {}.",
    "a blurry photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a photo of the small {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "a dark photo of a {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)


def sentences(states: tuple[str, ...], object_name: str) -> list[str]:
    """Return every state of ``object_name`` in every template; the name is inserted unchanged, with its underscores."""
    # Not str.format, as a name may contain braces.
    conditions = [state.replace("{}", object_name) for state in states]
    return [template.replace("{}", condition) for condition in conditions for template in TEMPLATES]


def check_length(object_name: str) -> None:
    """Refuse a name longer than ``MAX_OBJECT_NAME``. Raises OptionError."""
    if len(object_name) > MAX_OBJECT_NAME:
        raise OptionError(f"an object name of {len(object_name):,} characters; use at most {MAX_OBJECT_NAME}")


def encode_prompts(encoder: TextEncoder, object_name: str) -> torch.Tensor:
    """Return the text features F_t [2, C]: row 0 normal, row 1 anomalous, unit rows, float32.

    The unit features of all sentences of a group are averaged, and the mean is normalized. The result is kept in the
    cache folder and read from there without using the text tower; it has the same bits. Raises OptionError for a name
    longer than ``MAX_OBJECT_NAME``, or whose sentences the text tower would truncate, ArtifactError as
    ``TextEncoder.encode``.
    """
    check_length(object_name)
    groups = [sentences(states, object_name) for states in (NORMAL_STATES, ANOMALOUS_STATES)]
    digest = hashlib.sha256(json.dumps(groups).encode()).hexdigest()
    key = {**encoder.inputs, "aprilcli": __version__, "object": object_name, "sentences": digest}
    known = recall(CACHED, key)
    if known is not None:
        return known.to(encoder.device)
    means = [encoder.encode(group).mean(dim=0) for group in groups]
    features = F.normalize(torch.stack(means), dim=-1)
    remember(CACHED, key, features)
    return features
