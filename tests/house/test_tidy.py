"""What every file of the house keeps to."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "luthier"
HERE = Path(__file__)

# Paths that exist on one machine only, tokens, and marks of unfinished work or an unfinished merge.
NOT_HERE = {
    "a path of one machine": re.compile(
        r"(?<![\w.])/(?:root|home/(?!(?:user|you|x)\b)\w+|Users/\w+|work/\w+|tmp/\w+)/"
    ),
    "a token": re.compile(r"\b(?:hf_[A-Za-z]{30,}|sk-[A-Za-z0-9]{20,}|ghp_[A-Za-z0-9]{30,})"),
    "unfinished work": re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b"),
    "an unfinished merge": re.compile(r"^(?:<{7}|>{7}) ", re.M),
    "an address in a private network": re.compile(
        r"\b(?:10\.\d+|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d+\.\d+\b"
    ),
}
LARGEST = 2_000_000
NO_TEXT = {".png", ".webp", ".ico", ".woff2", ".gguf", ".parquet", ".zst", ".gz"}
MODULES = sorted(SOURCE.rglob("*.py"))


def tracked() -> list[Path]:
    """Files under version control; all of them where the source came without it."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_holds_what_belongs_to_one_machine() -> None:
    faults = []
    for path in tracked():
        if path == HERE or path.suffix in NO_TEXT:
            continue
        text = path.read_text(encoding="utf-8")
        for what, pattern in NOT_HERE.items():
            for found in pattern.finditer(text):
                line = text.count("\n", 0, found.start()) + 1
                faults.append(f"{path.relative_to(ROOT)}:{line}: {what}: {found[0]!r}")
    assert not faults, "\n".join(faults)


def test_no_file_is_large() -> None:
    assert not [f"{p.relative_to(ROOT)}: {p.stat().st_size}" for p in tracked() if p.stat().st_size > LARGEST]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_public_names_say_what_they_are_for(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [] if ast.get_docstring(tree) else ["the module"]
    silent += [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not silent, f"no docstring: {', '.join(silent)}"


def test_every_room_says_its_purpose() -> None:
    rooms = [path for path in SOURCE.iterdir() if path.is_dir() and any(path.glob("*.py"))]
    assert not [room.name for room in rooms if not (room / "__init__.py").is_file()]


def test_pinned_versions_are_allowed_ones() -> None:
    """constraints.txt pins each dependency that pyproject.toml names, to a version that it allows."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    named = [
        *project["dependencies"],
        *(d for extra in project["optional-dependencies"].values() for d in extra),
    ]
    for requirement in map(Requirement, named):
        if requirement.name == project["name"]:
            continue
        version = pins.get(requirement.name.lower().replace("_", "-").replace(".", "-"))
        assert version, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(version), f"{requirement} does not allow {version}"
        assert "+" not in version, "a local version stands on one index only"
