"""The structure of the package: which modules may import which, what is public, and what `--help` loads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import huggingface_hub
import pytest

import aprilcli

PACKAGE = Path(aprilcli.__file__).parent
RANKS = {
    "__main__": 7,
    "cli": 6,
    "workflows": 5,
    "core": 4,
    "io": 3,
    "options": 2,
    "text": 1,
    "streams": 1,
    "types": 0,
    "errors": 0,
    "defaults": 0,
}


def module_name(path: Path) -> str:
    """Return the dotted name of a module of the package; a package's is that of its folder."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a module imports, inside functions and for type checking, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            submodules = [name for name in names if name in MODULES]
            yield from submodules
            if len(submodules) < len(names):
                yield node.module


def top_level(module: str) -> str:
    return module.split(".")[1]


def test_a_module_imports_only_from_lower_ranks_or_its_own_folder() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        if module != "aprilcli"
        for imported in imports_of(path)
        if imported != "aprilcli"  # for its version
        and top_level(imported) != top_level(module)
        and RANKS[top_level(imported)] >= RANKS[top_level(module)]
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ["core", "io", "workflows"])
def test_the_modules_of_a_folder_do_not_import_each_other_in_cycles(folder: str) -> None:
    prefix = f"aprilcli.{folder}."
    graph = {
        module: {imported for imported in imports_of(path) if imported.startswith(prefix)}
        for module, path in MODULES.items()
        if module.startswith(prefix)
    }
    assert any(graph.values())
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_only_models_and_towers_import_open_clip() -> None:
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and any("open_clip" in name for name in [getattr(node, "module", None) or "", *(a.name for a in node.names)])
    }
    towers = {f"core/towers/{kind}.py" for kind in ("resnet", "timm", "vit")}
    assert importers == {"core/backbone.py", "core/catalogue.py", "core/model_loading.py", "core/tokenizer.py", *towers}


def test_openvino_is_imported_only_when_it_is_used() -> None:
    importers = {
        (path.relative_to(PACKAGE).as_posix(), node.col_offset > 0)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        if name.split(".")[0] in ("openvino", "nncf")
    }
    assert importers == {("core/openvino_encoder.py", True)}


@pytest.mark.parametrize("folder", ["core", "io"])
def test_core_and_io_name_no_options_of_the_command_line(folder: str) -> None:
    named = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.value}"
        for path in (PACKAGE / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search("--[a-z]", node.value)
    ]
    assert named == []


def test_one_module_adds_up_zero_shot_and_few_shot_maps() -> None:
    callers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in ("zero_shot_map", "few_shot_map")
    }
    assert callers == {"core/methods/april_gan.py"}


def test_public_names() -> None:
    assert aprilcli.__all__ == ["Detector", "__version__"]
    assert aprilcli.Detector.__module__ == "aprilcli.core.detector"


def test_help_loads_neither_torch_nor_numpy() -> None:
    assert loaded_by("from aprilcli.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass") == "[]"


def loaded_by(program: str) -> str:
    """Return which of the large libraries a program loads, as the last line of its output."""
    program += "\nimport sys; print(sorted({'torch', 'numpy', 'PIL', 'open_clip', 'pydantic'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return run.stdout.strip().splitlines()[-1]


def test_tests_are_offline() -> None:
    assert huggingface_hub.constants.HF_HUB_OFFLINE
