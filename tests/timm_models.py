"""Small models with random weights, most with timm's towers, in open_clip's local-dir form."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from aprilcli.core.prompts import ANOMALOUS_STATES, NORMAL_STATES, sentences

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SIGLIP_SCALE = 7.5  # not the paper's 100
MODELS: dict[str, dict[str, Any]] = {
    # Convolutional: a width and a grid per stage.
    "convnext": {
        "embed_dim": 48,
        "vision_cfg": {"image_size": 64, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": TEXT,
    },
    # No class token, attention pooling, no projection, a sigmoid head, a tokenizer of its own, not causal.
    "siglip": {
        "embed_dim": 96,
        "init_logit_scale": math.log(SIGLIP_SCALE),
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 64, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {
            **TEXT,
            "context_length": 64,
            "vocab_size": 200,
            "hf_tokenizer_name": "somebody/tokenizer",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
        },
    },
    # A class token, rotary positions, a context of 32 tokens.
    "pe-core": {
        "embed_dim": 48,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 64,
            "timm_model_name": "vit_pe_core_tiny_patch16_384",
            "timm_pool": "map",
            "timm_proj": None,
        },
        "text_cfg": {**TEXT, "context_length": 32},
    },
}
SMALL_VIT: dict[str, Any] = {  # open_clip's own tower, of two blocks
    "embed_dim": 48,
    "vision_cfg": {"image_size": 56, "layers": 2, "width": 64, "head_width": 16, "patch_size": 14},
    "text_cfg": TEXT,
}


def build(config: dict[str, Any], seed: int = 0) -> Any:
    """Build open_clip's model with random weights; the positions are those of the trunk's own size."""
    settings = {name: value for name, value in config.items() if name != "custom_text"}
    torch.manual_seed(seed)
    return (open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP)(**settings).eval()


def write_model(folder: Path, name: str) -> Path:
    """Write one of ``MODELS`` as a user's folder; return the folder."""
    return write_config(folder, MODELS[name])


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """Write a model of this configuration as a user's folder; return the folder."""
    folder.mkdir(parents=True)
    state = {key: value.contiguous().clone() for key, value in build(config).state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    preprocessing = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    content = {"model_cfg": config, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    if "hf_tokenizer_name" in config["text_cfg"]:
        write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of whole words: those of the prompts and a few objects; all others are unknown."""
    import tokenizers  # a dependency of transformers

    prompts = sentences((*NORMAL_STATES, *ANOMALOUS_STATES), "bolt nut object screw")
    words = sorted({word for sentence in prompts for word in sentence.lower().replace(".", "").split()})
    vocabulary = {word: number for number, word in enumerate(["<unk>", "</s>", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "</s>"}))
