"""The shape of the house: who may import whom, what is public, and what `--help` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import aprilcli

PACKAGE = Path(aprilcli.__file__).parent
RANKS = {"__main__": 6, "cli": 5, "workflows": 4, "core": 3, "io": 2, "text": 1, "types": 0, "errors": 0}


def test_a_module_imports_only_from_ranks_below_or_its_own_room() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aprilcli."):
                other = (node.module or "").split(".")[1]
                if other != room and RANKS[other] >= RANKS[room]:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {node.module}")
    assert wrong == []


def test_only_models_and_towers_know_open_clip() -> None:
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and any("open_clip" in name for name in [getattr(node, "module", None) or "", *(a.name for a in node.names)])
    }
    towers = {f"core/towers/{kind}.py" for kind in ("resnet", "timm", "vit")}
    assert importers == {"core/backbone.py", "core/catalogue.py", *towers}


def test_public_names() -> None:
    assert aprilcli.__all__ == ["Detector", "__version__"]
    assert aprilcli.Detector.__module__ == "aprilcli.core.detector"


def test_help_loads_neither_torch_nor_numpy() -> None:
    program = (
        "import sys; from aprilcli.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'open_clip'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("[]")
