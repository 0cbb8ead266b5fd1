"""Starting up is light: no command loads torch, and `--help` loads nothing but the CLI library."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "luthier"
TORCH = {"torch", "transformers", "peft", "accelerate", "bitsandbytes"}
SLOW = TORCH | {"numpy", "scipy", "huggingface_hub", "tokenizers", "pyarrow", "sklearn", "ruamel", "pydantic"}
LIGHT_ROOMS = (
    "schema",
    "catalog",
    "hub",
    "sizing",
    "llamacpp",
    "planning",
    "data",
    "evaluation",
    "exporting",
    "runs",
    "studio",
    "cli",
)
REPORT = "import json, sys; print(); print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


def loaded_after(code: str, tmp_path: Path) -> set[str]:
    """Top-level packages that a fresh interpreter holds after running code."""
    env = {
        **os.environ,
        "LUTHIER_CACHE": str(tmp_path / "cache"),
        "LUTHIER_HOME": str(tmp_path),
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{REPORT}"],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def command(*words: str) -> str:
    """Code that runs a command and goes on when it leaves without a fault."""
    return (
        "from luthier.cli.main import main\n"
        f"try:\n    main({list(words)!r})\n"
        "except SystemExit as left:\n    assert not left.code, left.code"
    )


def test_help_loads_only_the_command_library(tmp_path: Path) -> None:
    assert not loaded_after(command("--help"), tmp_path) & SLOW


@pytest.mark.parametrize(
    "words",
    [
        ("--version",),
        ("train", "--help"),
        ("get", "--list"),
        ("runs",),
        ("cache",),
        ("models", "list"),
        ("doctor", "--json"),
    ],
    ids=" ".join,
)
def test_no_command_of_the_desk_loads_torch(words: tuple[str, ...], tmp_path: Path) -> None:
    assert not loaded_after(command(*words), tmp_path) & TORCH


@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_a_light_room_loads_no_torch(room: str, tmp_path: Path) -> None:
    if not (SOURCE / room).is_dir():
        pytest.skip("no such room yet")
    modules = [f"luthier.{room}"]
    modules += [
        m.name
        for m in pkgutil.walk_packages([str(SOURCE / room)], f"luthier.{room}.")
        if not child_only(m.name)
    ]
    code = "".join(f"import {name}\n" for name in modules)
    assert not loaded_after(code, tmp_path) & TORCH


def child_only(name: str) -> bool:
    """Modules that run in a child process of their own, and the one file of data that holds tensors."""
    return name == "luthier.data.collate" or name.endswith(("_child", ".worker"))


def test_the_public_functions_load_no_torch(tmp_path: Path) -> None:
    assert (
        not loaded_after("import luthier, luthier.api\n[getattr(luthier, n) for n in dir(luthier)]", tmp_path)
        & TORCH
    )
