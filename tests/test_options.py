"""The options, and the command line that is made of them."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from typing import get_type_hints

import pytest
import typer.main
from helpers import run

from aprilcli.cli import app
from aprilcli.errors import OptionError
from aprilcli.options import (
    EnrollOptions,
    EvalOptions,
    InspectOptions,
    ReportOptions,
    ScanOptions,
    TrainOptions,
    describe,
    parse_range,
    parse_shots,
    parse_stages,
)

CLASSES = {
    "scan": ScanOptions,
    "enroll": EnrollOptions,
    "train": TrainOptions,
    "eval": EvalOptions,
    "report": ReportOptions,
    "inspect": InspectOptions,
}
PRINTING = {"--quiet", "--verbose"}


def parameters_of(command: str) -> dict:
    return {parameter.name: parameter for parameter in typer.main.get_command(app).commands[command].params}


@pytest.mark.parametrize("command", CLASSES)
def test_every_field_is_an_option_with_its_default_help_and_environment_variable(command: str) -> None:
    parameters = parameters_of(command)
    for field in fields(CLASSES[command]):
        parameter = parameters.pop(field.name)
        option = get_type_hints(CLASSES[command], include_extras=True)[field.name].__metadata__[0]
        assert parameter.help == option.help
        assert parameter.required == (field.default is MISSING)
        assert field.default is MISSING or parameter.default == field.default
        if parameter.param_type_name == "option":
            name = parameter.opts[0].removeprefix("--").replace("-", "_").upper()
            assert parameter.envvar == f"APRILCLI_{name}"
    assert {parameter.opts[0] for parameter in parameters.values()} == (PRINTING if command != "inspect" else set())


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        ("scan", "FOLDER"),
        ("enroll", "FOLDER"),
        ("train", "DATASET"),
        ("eval", "DATASET"),
        ("inspect", "FILE"),
        ("report", "OUT"),
    ],
)
def test_usage_names_the_argument_in_capitals(command: str, argument: str) -> None:
    usage = run(command, "--help").stdout.strip().splitlines()[0]
    assert usage.split()[-1].strip("{[.]}") == argument  # typer puts optional arguments in brackets


EVERYDAY = {
    "scan": {"--out", "--part", "--object", "--threshold", "--maps", "--tile", "--model"},
    "enroll": {"--part", "--append", "--calibrate", "--object", "--rotations"},
    "train": {"--out", "--epochs", "--resume"},
    "eval": {"--out", "--shots", "--calibrate", "--maps"},
    "report": {"--images", "--overlays"},
    "inspect": {"--sheet"},
}


@pytest.mark.parametrize("command", CLASSES)
def test_help_lists_everyday_options_before_expert_options_each_once(command: str) -> None:
    text = run(command, "--help").stdout
    everyday, _, expert = text.partition("\nExpert options:\n")
    shown = {part: re.findall(r"^  (--[a-z-]+)", part, re.MULTILINE) for part in (everyday, expert)}
    assert set(shown[everyday]) >= EVERYDAY[command]
    assert "-h, --help" in everyday
    assert ("--batch-size" in shown[expert]) == (command not in ("inspect", "report"))
    named = [name for names in shown.values() for name in names]
    expected = [parameter for parameter in parameters_of(command).values() if parameter.param_type_name == "option"]
    assert sorted(named) == sorted(parameter.opts[0] for parameter in expected)


@pytest.mark.parametrize("command", CLASSES)
def test_everyday_help_needs_no_knowledge_of_the_model(command: str) -> None:
    everyday = run(command, "--help").stdout.partition("\nExpert options:\n")[0]
    assert not re.findall("CLIP|encoder|prompt|token|fp32", everyday)
    assert max(map(len, everyday.splitlines())) <= 100


def test_one_name_per_option_in_all_commands() -> None:
    names: dict[str, set[str]] = {}
    for command in CLASSES:
        for parameter in parameters_of(command).values():
            names.setdefault(parameter.name, set()).add(parameter.opts[0])
    assert all(len(options) == 1 for options in names.values())


def test_text_is_parsed_or_refused_with_the_options_name() -> None:
    assert (parse_range("0,4095"), parse_stages("6,12"), parse_shots("0")) == ((0.0, 4095.0), (6, 12), (0,))
    for parse, text, message in (
        (parse_range, "5,5", "--range 5,5: give two numbers"),
        (parse_range, "0,nan", "--range 0,nan: give two numbers"),
        (parse_stages, "two", "--stages two: give integers"),
        (parse_shots, "", "--shots : give integers"),
    ):
        with pytest.raises(OptionError, match=message):
            parse(text)


@pytest.mark.parametrize("command", CLASSES)
def test_every_decimal_number_is_parsed_or_refused_with_an_example(command: str) -> None:
    hints = get_type_hints(CLASSES[command])
    annotated = get_type_hints(CLASSES[command], include_extras=True)
    for name in (name for name, hint in hints.items() if hint in (float, float | None)):
        option, parse = annotated[name].__metadata__
        flag = option.default  # where typer puts the first name
        assert parse("1e-3") == 0.001
        for text, example in (("5%", "0.05"), ("0,05", "0.05"), (" 12,5 % ", "0.125"), ("", ""), ("five", "")):
            with pytest.raises(OptionError) as caught:
                parse(text)
            assert str(caught.value).startswith(f"{flag} {text}: give a decimal number, such as {example}")


def test_a_record_of_options_is_flat(tmp_path) -> None:
    record = describe(ScanOptions(paths=[tmp_path]))
    assert record["paths"] == [str(tmp_path)]
    assert record.keys() == {field.name for field in fields(ScanOptions)}
    assert not any(isinstance(value, dict) for value in record.values())


def test_an_unknown_layout_is_wrong_usage_that_lists_the_layouts(tmp_path) -> None:
    for arguments in (["eval", tmp_path], ["train", tmp_path, "--out", tmp_path / "p.safetensors"]):
        result = run(*arguments, "--layout", "coco")
        assert result.exit_code == 2
        assert "unknown layout coco; choose auto, mvtec, loco, btad, ad2, visa, folder" in result.stderr
