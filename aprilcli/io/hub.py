"""CLIP weights from the Hugging Face hub: from the local cache, or else one download attempt that fails quickly."""

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
    """Return the path of an open_clip checkpoint, downloading it if it is not in the cache.

    ``name`` is the model name for messages, ``repository`` the hub's ``owner/name``. Raises BackboneError within
    seconds if the hub cannot be reached, with the model, the reason and three alternatives.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    wanted = f"the weights of {name}"
    for filename in WEIGHT_FILES:
        cached = huggingface_hub.try_to_load_from_cache(repository, filename)
        if isinstance(cached, str):
            return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise _unavailable(wanted, repository, "HF_HUB_OFFLINE is set")
    _check_reachable(wanted, repository, constants.ENDPOINT)
    for filename in WEIGHT_FILES:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, filename))
        except errors.LocalEntryNotFoundError as error:  # the connection was lost
            raise _unavailable(wanted, repository, first_line(error)) from error
        except errors.EntryNotFoundError:
            continue
        except (errors.HfHubHTTPError, OSError, ValueError) as error:
            raise _unavailable(wanted, repository, first_line(error)) from error
    raise _unavailable(wanted, repository, "it holds no open_clip weights")


def check_tokenizer(name: str, repository: str) -> None:
    """Raise BackboneError in seconds where the tokenizer in ``repository`` is neither cached nor can be downloaded."""
    import huggingface_hub
    from huggingface_hub import constants

    wanted = f"the tokenizer of {name}"
    if isinstance(huggingface_hub.try_to_load_from_cache(repository, "tokenizer_config.json"), str):
        return
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
        f"{wanted} ({repository}): not on this machine and cannot be downloaded: {reason}; "
        f"run this once on a machine with internet access and copy its {folder} here, "
        "or give a model folder (in open_clip's local-dir format), or use the model tiny"
    )
