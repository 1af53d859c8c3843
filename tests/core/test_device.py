"""Which engine, device and precision a model runs with, with and without a bank."""

from __future__ import annotations

import sys

import pytest

from aprilcli.core.device import engine_for_bank, is_interchangeable, resolve
from aprilcli.errors import OptionError


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (("torch", "cpu", "auto"), ("cpu", "fp32")),
        (("torch", "cpu", "bf16"), ("cpu", "bf16")),
        (("openvino", "auto", "auto"), ("cpu", "fp32")),
        (("openvino", "cpu", "int8"), ("cpu", "int8")),
    ],
)
def test_auto_is_resolved(given: tuple[str, str, str], found: tuple[str, str]) -> None:
    device, precision = resolve(*given)
    assert (str(device), precision) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("torch", "cpu", "int8"), "precision int8: only the engine openvino computes in it"),
        (
            ("openvino", "cuda", "auto"),
            "device cuda: the engine openvino runs on the CPU; use cpu, or the engine torch",
        ),
        (("openvino", "mps", "auto"), "device mps: the engine openvino runs on the CPU"),
        (("openvino", "cpu", "fp16"), "precision fp16: the engine openvino does not compute in it on a CPU"),
        (("tensorrt", "cpu", "auto"), "engine tensorrt: unknown; choose torch or openvino"),
    ],
)
def test_what_an_engine_cannot_run_is_refused(given: tuple[str, str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        resolve(*given)


def test_only_int8_needs_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    resolve("openvino", "cpu", "fp32")
    with pytest.raises(OptionError, match=r"needs nncf; run: pip install 'aprilcli\[openvino\]'"):
        resolve("openvino", "cpu", "int8")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(OptionError, match="needs openvino and nncf; run"):
        resolve("openvino", "cpu", "int8")


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        (("torch", "fp32"), ("openvino", "fp32"), True),
        (("torch", "fp16"), ("openvino", "fp32"), True),
        (("torch", "bf16"), ("torch", "bf16"), True),
        (("torch", "bf16"), ("torch", "fp32"), False),
        (("torch", "bf16"), ("openvino", "bf16"), False),
        (("openvino", "fp32"), ("openvino", "int8"), False),
        (("openvino", "int8"), ("openvino", "int8"), True),
        (("torch", None), ("torch", "bf16"), True),  # of an earlier version, which does not say
        (("torch", None), ("openvino", "fp32"), True),
        (("torch", None), ("openvino", "int8"), False),
    ],
)
def test_which_features_can_be_compared(own: tuple[str, str | None], other: tuple[str, str], expected: bool) -> None:
    assert is_interchangeable(own, other) == expected


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [
        (("torch", "fp16"), (None, "cpu", "auto"), ("torch", "auto")),
        (("torch", None), (None, "auto", "auto"), ("torch", "auto")),
        (("torch", "bf16"), (None, "cpu", "auto"), ("torch", "bf16")),
        (("openvino", "fp32"), (None, "auto", "auto"), ("openvino", "auto")),
        (("openvino", "fp32"), (None, "cuda", "auto"), ("torch", "auto")),
        (("openvino", "fp32"), (None, "auto", "fp16"), ("torch", "fp16")),
        (("openvino", "fp32"), ("torch", "auto", "auto"), ("torch", "auto")),
        (("openvino", "int8"), (None, "cuda", "auto"), ("openvino", "int8")),  # refused later
    ],
)
def test_a_bank_completes_what_is_not_given(
    own: tuple[str, str | None], given: tuple[str | None, str, str], expected: tuple[str, str]
) -> None:
    assert engine_for_bank(own, *given) == (*expected, "")
