"""The layers of the package: a folder imports only from its own row and from rows above it, and the torch-free rows stay so."""

import ast
from pathlib import Path

import pytest

import fastnas

PACKAGE = Path(fastnas.__file__).parent
ROWS = [["ops", "blueprint"], ["spaces", "models"], ["data", "train", "latency"], ["search", "export"], ["report", "cli"]]
ROW = {name: row for row, names in enumerate(ROWS) for name in names}
NO_TORCH = {"blueprint", "spaces", "latency", "report"}
MAY_TORCH = {"latency/torch_engine.py"}  # loaded when that engine is opened
NO_TORCHVISION = {"ops", "blueprint", "spaces"}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: write imports in full"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("folder", sorted(ROW))
def test_imports_point_up_only(folder):
    files = list((PACKAGE / folder).rglob("*.py"))
    assert files
    for file in files:
        for name in imports(file):
            package, *rest = name.split(".")
            own = str(file.relative_to(PACKAGE)) in MAY_TORCH
            assert package != "torch" or folder not in NO_TORCH or own, f"{file} imports {name}"
            assert package != "torchvision" or folder not in NO_TORCHVISION, f"{file} imports {name}"
            if package == "fastnas" and rest and rest[0] in ROW:
                assert ROW[rest[0]] <= ROW[folder], f"{file} imports {name} from a lower row"


def test_every_folder_has_its_row():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").is_file()} <= set(ROW)
