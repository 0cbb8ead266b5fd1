"""What each way of keeping activations leaves, beside measured steps of compiled layers on an H100."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _script() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "memory" / "keeping.py"
    spec = importlib.util.spec_from_file_location("keeping_rows", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


KEEPING = _script()


@pytest.mark.parametrize("row", KEEPING.ROWS, ids=lambda row: "-".join(map(str, row[:4])))
def test_the_formula_is_within_two_percent(row: tuple[str, int, str, int | None, float]) -> None:
    assert KEEPING.formula(row) == pytest.approx(row[4], rel=0.02)
