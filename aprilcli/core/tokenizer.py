"""Tokenizers of open_clip's models."""

from __future__ import annotations

import hashlib
import importlib.util
from importlib import metadata
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer

from aprilcli.core.catalogue import Configuration, ModelSource
from aprilcli.core.model_folder import BROKEN_MODEL
from aprilcli.errors import ArtifactError, BackboneError
from aprilcli.io.hub import fetch_tokenizer
from aprilcli.text import first_line

READ_BY_TRANSFORMERS = (".json", ".txt", ".model")
OWN_PACKAGES = ("open_clip_torch", "ftfy", "regex")
PACKAGES = ("open_clip_torch", "transformers", "tokenizers", "sentencepiece")


def find_tokenizer(source: ModelSource, config: Configuration) -> Path | None:
    """Return the folder of the tokenizer that the configuration names, downloading it if necessary.

    None for open_clip's own tokenizer. Raises BackboneError.
    """
    repository = config.model["text_cfg"].get("hf_tokenizer_name")
    if not repository:
        return None
    if importlib.util.find_spec("transformers") is None:
        raise BackboneError(
            f"{source.label}: its tokenizer needs the package transformers; run: pip install 'aprilcli[transformers]'"
        )
    return source.folder or fetch_tokenizer(source.label, repository)


def load_tokenizer(source: ModelSource, config: Configuration, folder: Path | None) -> Any:
    """Load open_clip's own tokenizer, or the one in ``folder``, without running code that is in it.

    Raises ArtifactError.
    """
    text = config.model["text_cfg"]
    try:
        if folder is not None:
            tokenizer = HFTokenizer(
                str(folder),
                context_length=text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
                tokenizer_mode=text.get("tokenizer_mode"),
                trust_remote_code=False,
                local_files_only=True,
                **text.get("tokenizer_kwargs", {}),
            )
        else:
            tokenizer = open_clip.get_tokenizer(f"local-dir:{source.folder}" if source.folder else source.name)
        tokenizer(["object"])
    except (OSError, ImportError, *BROKEN_MODEL) as error:
        raise ArtifactError(
            f"{source.label}: its tokenizer cannot be loaded ({first_line(error)}); choose another model"
        ) from error
    return tokenizer


def describe_tokenizer(folder: Path | None) -> dict[str, str]:
    """Return what the tokens of a text depend on, besides the model's configuration: files and packages.

    ``folder``: as ``find_tokenizer`` returns it. Raises OSError.
    """
    if folder is None:
        return {package: _version(package) for package in OWN_PACKAGES}
    sha256 = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in READ_BY_TRANSFORMERS and path.is_file():
            sha256.update(f"{path.name} {path.stat().st_size}\n".encode())
            sha256.update(path.read_bytes())
    return {"sha256": sha256.hexdigest(), **{package: _version(package) for package in PACKAGES}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
