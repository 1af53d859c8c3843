"""Weights and tokenizers from the Hugging Face hub: the local cache first, then one attempt that fails in seconds."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from pathlib import Path

from aprilcli.errors import BackboneError
from aprilcli.text import first_line

CONNECT_TIMEOUT = 5.0  # seconds; the hub's own client retries for minutes
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
VOCABULARIES = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")
# A vocabulary is downloaded last: if the cache has one, it has the rest.
TOKENIZER_FILES = ("config.json", "tokenizer_config.json", "special_tokens_map.json", *VOCABULARIES)


def fetch_clip_weights(name: str, repository: str, filenames: tuple[str, ...] = WEIGHT_FILES) -> Path:
    """Return the path of an open_clip checkpoint, downloading it if it is not in the cache.

    ``name`` is the model name for messages, ``repository`` the hub's ``owner/name``. Raises BackboneError within
    seconds if the hub cannot be reached, with the model, the reason and three alternatives.
    """
    wanted = f"weights of {name}"
    if cached := _cached(repository, filenames):
        return cached
    _check_online(wanted, repository)
    for filename in filenames:
        if path := _download(wanted, repository, filename):
            return path
    raise _unavailable(wanted, repository, "it holds no open_clip weights")


def fetch_tokenizer(name: str, repository: str) -> Path:
    """Return a folder with the files of a tokenizer, downloading them if they are not in the cache.

    ``name`` is the model that needs the tokenizer, ``repository`` the hub's ``owner/name`` (``name`` for a few).
    Raises BackboneError in seconds, like ``fetch_clip_weights``.
    """
    wanted = f"tokenizer of {name}"
    if cached := _cached(repository, VOCABULARIES):
        return cached.parent
    _check_online(wanted, repository)
    found = [path for filename in TOKENIZER_FILES if (path := _download(wanted, repository, filename))]
    if not found or found[-1].name not in VOCABULARIES:
        raise _unavailable(wanted, repository, "it holds no tokenizer")
    return found[-1].parent


def _cached(repository: str, filenames: tuple[str, ...]) -> Path | None:
    """Return the first of the files that the cache holds."""
    import huggingface_hub

    found = (huggingface_hub.try_to_load_from_cache(repository, filename) for filename in filenames)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _download(wanted: str, repository: str, filename: str) -> Path | None:
    """Download a file of a repository; return None if the repository does not have it."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.hf_hub_download(repository, filename))
    except errors.LocalEntryNotFoundError as error:  # the connection was lost
        raise _unavailable(wanted, repository, first_line(error)) from error
    except errors.EntryNotFoundError:
        return None
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise _unavailable(wanted, repository, first_line(error)) from error


def _check_online(wanted: str, repository: str) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise _unavailable(wanted, repository, "HF_HUB_OFFLINE is set")
    _check_reachable(wanted, repository, constants.ENDPOINT)


def _check_reachable(wanted: str, repository: str, endpoint: str) -> None:
    """Open one connection (to the proxy, if set) to fail at once without internet access."""
    address = urllib.parse.urlsplit(endpoint)
    address = urllib.parse.urlsplit(urllib.request.getproxies().get(address.scheme, endpoint))
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        raise _unavailable(wanted, repository, f"{host} cannot be reached ({error.strerror or error})") from error


def _unavailable(wanted: str, repository: str, reason: str) -> BackboneError:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    return BackboneError(
        f"the {wanted} ({repository}): not on this machine and cannot be downloaded: {reason}; "
        f"run this once on a machine with internet access and copy its {folder} here, "
        "or give a model folder (in open_clip's local-dir format), or use the model tiny"
    )
