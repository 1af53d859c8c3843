"""The methods by name, except the paper's own, which has a projector and searches a bank as it is kept."""

from __future__ import annotations

from collections.abc import Callable

import torch

from aprilcli.core.methods import Method
from aprilcli.core.methods.padim import Padim
from aprilcli.core.methods.patchcore import PatchCore
from aprilcli.core.methods.spade import Spade
from aprilcli.core.methods.subspacead import SubspaceAd
from aprilcli.core.methods.winclip import WinClip
from aprilcli.defaults import PADIM, PATCHCORE, SPADE, SUBSPACEAD, WINCLIP
from aprilcli.types import ModelSpec

# By name: from the model and the text features [2, C] to a method without references.
METHOD_CLASSES: dict[str, Callable[[ModelSpec, torch.Tensor], Method]] = {
    PADIM: Padim,
    PATCHCORE: PatchCore,
    SPADE: Spade,
    SUBSPACEAD: SubspaceAd,
    WINCLIP: WinClip,
}
