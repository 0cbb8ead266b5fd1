"""What each way of keeping activations leaves, beside measured steps of compiled layers on an H100."""

from __future__ import annotations

from types import ModuleType

import pytest

from scripts import script


def _script() -> ModuleType:
    return script("benchmarks/memory/keeping")


KEEPING = _script()


@pytest.mark.parametrize("row", KEEPING.ROWS, ids=lambda row: "-".join(map(str, row[:4])))
def test_the_formula_is_within_two_percent(row: tuple[str, int, str, int | None, float]) -> None:
    assert KEEPING.formula(row) == pytest.approx(row[4], rel=0.02)
