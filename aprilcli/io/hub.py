"""CLIP weights from the Hugging Face hub: the local cache first, then one attempt that fails in seconds."""

from __future__ import annotations

import contextlib
import socket
import urllib.parse
import urllib.request
from pathlib import Path

from aprilcli.errors import BackboneError
from aprilcli.text import first_line

CONNECT_TIMEOUT = 5.0  # seconds; the hub's own client retries for minutes
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER_FILES = ("*.json", "*.model", "*.txt")
VOCABULARIES = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")  # a tokenizer has one


def fetch_clip_weights(name: str, repository: str, filenames: tuple[str, ...] = WEIGHT_FILES) -> Path:
    """Return the path of an open_clip checkpoint, downloading it if it is not in the cache.

    ``name`` is the model name for messages, ``repository`` the hub's ``owner/name``. Raises BackboneError within
    seconds if the hub cannot be reached, with the model, the reason and three alternatives.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    wanted = f"weights of {name}"
    for filename in filenames:
        cached = huggingface_hub.try_to_load_from_cache(repository, filename)
        if isinstance(cached, str):
            return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise _unavailable(wanted, repository, "HF_HUB_OFFLINE is set")
    _check_reachable(wanted, repository, constants.ENDPOINT)
    reason = "it holds no open_clip weights"
    for filename in filenames:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, filename))
        except errors.LocalEntryNotFoundError as error:  # the connection was lost
            raise _unavailable(wanted, repository, first_line(error)) from error
        except errors.EntryNotFoundError:
            continue
        except (errors.HfHubHTTPError, OSError, ValueError) as error:
            raise _unavailable(wanted, repository, first_line(error)) from error
    raise _unavailable(wanted, repository, reason)


def fetch_tokenizer(name: str, repository: str) -> Path:
    """Return a folder with the files of a tokenizer, downloading them if they are not in the cache.

    ``name`` is the model that needs the tokenizer, ``repository`` the hub's ``owner/name`` (``name`` for a few).
    Raises BackboneError in seconds, like ``fetch_clip_weights``.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    wanted = f"tokenizer of {name}"
    with contextlib.suppress(errors.LocalEntryNotFoundError):
        folder = Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
        if any((folder / vocabulary).is_file() for vocabulary in VOCABULARIES):
            return folder
    if constants.HF_HUB_OFFLINE:
        raise _unavailable(wanted, repository, "HF_HUB_OFFLINE is set")
    _check_reachable(wanted, repository, constants.ENDPOINT)
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(TOKENIZER_FILES)))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _unavailable(wanted, repository, first_line(error)) from error


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
