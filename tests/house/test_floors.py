"""The order of floors, where import-linter does not look: names in strings, and torch."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "luthier"
FILES = sorted(SOURCE.rglob("*.py"))
TARGET = re.compile(r"luthier(\.\w+)+(:\w+)?")
ROOMS = {path.stem for path in SOURCE.iterdir()}
HEAVY = {"torch", "transformers", "peft", "accelerate"}
MAY_LOAD_TORCH = {"models", "training", "tasks", "checks"}
# The one file of data that makes tensors, and the child process that runs llama.cpp's own converter.
MAY_LOAD_TORCH_TOO = {SOURCE / "data" / "collate.py", SOURCE / "llamacpp" / "convert_child.py"}


def floors() -> dict[str, int]:
    """Package -> floor, counted from below, as pyproject.toml has it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return {
        package.strip(" ()"): floor
        for floor, layer in enumerate(reversed(layers))
        for package in re.split(r"[|:]", layer)
    }


def room_of(path: Path) -> str:
    """The package or module right below luthier that a file is part of."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def lazy_targets() -> Iterator[tuple[Path, str]]:
    """Every string in the source that names a module of ours: lazily loaded commands, child processes."""
    for path in FILES:
        tree = ast.parse(path.read_text())
        words = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in words:
                continue
            if TARGET.fullmatch(node.value) and node.value.split(".")[1].partition(":")[0] in ROOMS:
                yield path, node.value


def test_the_commands_are_found() -> None:
    from luthier.cli.main import COMMANDS

    targets = {target for _, target in lazy_targets()}
    assert {target for target, *_ in COMMANDS.values()} <= targets


@pytest.mark.parametrize(
    ("path", "target"), [pytest.param(p, t, id=f"{p.stem}-{t}") for p, t in lazy_targets()]
)
def test_a_name_in_a_string_exists_and_stands_below(path: Path, target: str) -> None:
    module, _, attribute = target.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{path} names {module}, which does not exist"
    if attribute:
        assert spec.origin is not None
        names = defined_in(Path(spec.origin))
        assert attribute in names, f"{path} names {target}, but {module} has no {attribute}"
    table = floors()
    own, other = room_of(path), module.split(".")[1]
    assert own in (other, "__init__") or table[other] < table[own], f"{own} may not load {other}"


def defined_in(path: Path) -> set[str]:
    """Names that a module defines or imports at its top."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_torch_stays_in_its_rooms(path: Path) -> None:
    if room_of(path) in MAY_LOAD_TORCH or path in MAY_LOAD_TORCH_TOO:
        pytest.skip("may import torch")
    tree = ast.parse(path.read_text())
    roots = {
        alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names
    }
    roots |= {
        (n.module or "").split(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom) and not n.level
    }
    assert not roots & HEAVY
