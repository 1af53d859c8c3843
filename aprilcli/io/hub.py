"""CLIP weights from the Hugging Face hub: the local cache first, then one attempt that fails in seconds."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from pathlib import Path

from aprilcli.errors import BackboneError
from aprilcli.text import first_line

CONNECT_TIMEOUT = 5.0  # seconds; the hub's own client retries for minutes
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def fetch_clip_weights(name: str, repository: str) -> Path:
    """Return the path of an open_clip checkpoint, downloading it when the cache lacks it.

    ``name`` is what the user asked for (for messages), ``repository`` the hub's ``owner/name``.
    Raises BackboneError in seconds, naming the model, the reason and the three ways on.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    for filename in WEIGHT_FILES:
        cached = huggingface_hub.try_to_load_from_cache(repository, filename)
        if isinstance(cached, str):
            return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise _unavailable(name, repository, "HF_HUB_OFFLINE is set")
    _check_reachable(name, repository, constants.ENDPOINT)
    reason = "it holds no open_clip weights"
    for filename in WEIGHT_FILES:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, filename))
        except errors.LocalEntryNotFoundError as error:  # the connection broke
            raise _unavailable(name, repository, first_line(error)) from error
        except errors.EntryNotFoundError:
            continue
        except (errors.HfHubHTTPError, OSError, ValueError) as error:
            raise _unavailable(name, repository, first_line(error)) from error
    raise _unavailable(name, repository, reason)


def check_tokenizer(name: str, repository: str) -> None:
    """Raise BackboneError in seconds where the tokenizer in ``repository`` is neither cached nor can be downloaded."""
    import huggingface_hub
    from huggingface_hub import constants

    if isinstance(huggingface_hub.try_to_load_from_cache(repository, "tokenizer_config.json"), str):
        return
    if constants.HF_HUB_OFFLINE:
        raise _unavailable(f"{name}'s tokenizer", repository, "HF_HUB_OFFLINE is set")
    _check_reachable(f"{name}'s tokenizer", repository, constants.ENDPOINT)


def _check_reachable(name: str, repository: str, endpoint: str) -> None:
    """Open one connection (to the proxy, where there is one), so that who has no internet hears about it at once."""
    address = urllib.parse.urlsplit(endpoint)
    address = urllib.parse.urlsplit(urllib.request.getproxies().get(address.scheme, endpoint))
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        raise _unavailable(name, repository, f"{host} cannot be reached ({error.strerror or error})") from error


def _unavailable(name: str, repository: str, reason: str) -> BackboneError:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    return BackboneError(
        f"{name} ({repository}): not on this machine and cannot be fetched: {reason}; "
        f"run this once on a connected machine and copy its {folder} here, "
        "or give --model DIR (a folder in open_clip's local-dir form), or use --model tiny"
    )
