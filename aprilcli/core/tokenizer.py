"""Tokenizers of open_clip's models."""

from __future__ import annotations

import importlib.util
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer

from aprilcli.core.catalogue import (
    Configuration,
    ModelSource,
)
from aprilcli.core.model_folder import BROKEN_MODEL
from aprilcli.errors import ArtifactError, BackboneError
from aprilcli.io.hub import fetch_tokenizer
from aprilcli.text import first_line


def load_tokenizer(source: ModelSource, config: Configuration) -> Any:
    """Load open_clip's own tokenizer, or the one that the configuration names, without running code that is in it."""
    text = config.model["text_cfg"]
    repository = text.get("hf_tokenizer_name")
    if repository and importlib.util.find_spec("transformers") is None:
        raise BackboneError(
            f"{source.label}: its tokenizer needs the package transformers; run: pip install 'aprilcli[transformers]'"
        )
    try:
        if repository:
            tokenizer = HFTokenizer(
                str(source.folder or fetch_tokenizer(source.label, repository)),
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
