"""What is shipped is what the committed rows give, and holds for rows that were never fitted."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest

from luthier.sizing.calibration import CONTEXT_HOPPER, HEAP_WASTE, RESERVED, RUNTIME
from scripts import script


@pytest.fixture(scope="module")
def fit() -> ModuleType:
    return script("benchmarks/memory/fit")


def test_the_script_gives_what_is_shipped(fit: ModuleType) -> None:
    """Within a few per cent: a better formula moves the fit a little before somebody fits anew."""
    rows, _ = fit.host_rows()
    runtime, waste = fit.fit_host([row for row in rows if not row.unseen])
    assert runtime == pytest.approx(RUNTIME, rel=0.05)
    assert waste == pytest.approx(HEAP_WASTE, rel=0.15)
    device = [row for row in fit.device_rows() if not row.unseen]
    assert sorted(row.outside for row in device)[len(device) // 2] == pytest.approx(CONTEXT_HOPPER, rel=0.05)
    ratios = [row.reserved / row.allocated for row in device]
    assert RESERVED[0] <= min(ratios)
    assert max(ratios) <= RESERVED[2]


def test_held_out_rows_are_never_fitted_and_come_out_right(fit: ModuleType) -> None:
    rows, _ = fit.host_rows()
    unseen = [row for row in rows if row.unseen]
    assert len(unseen) >= 3
    assert len(unseen) < len(rows) / 2
    wrong = [replace(row, measured=row.measured * 9) if row.unseen else row for row in rows]
    assert fit.fit_host([r for r in wrong if not r.unseen]) == fit.fit_host([r for r in rows if not r.unseen])
    for row in unseen:
        assert row.predicted(RUNTIME, HEAP_WASTE) == pytest.approx(row.measured, rel=0.10), row.name


def test_encoders_on_a_processor_within_ten_percent(fit: ModuleType) -> None:
    """Labels and pairs, adapters and all weights, chunks with cached gradients: MiniLM's resident set."""
    rows = [row for row in fit.host_rows()[0] if "MiniLM" in row.name]
    assert len(rows) == 6
    for row in rows:
        assert row.predicted(RUNTIME, HEAP_WASTE) == pytest.approx(row.measured, rel=0.10), row.name


def test_our_trainer_s_tensors_on_an_h100_within_three_percent(fit: ModuleType) -> None:
    """13 shapes, with the loss that the trainer had when they were measured."""
    for row in fit.device_rows():
        assert row.formula == pytest.approx(row.allocated, rel=0.03), row.name


def test_a_process_on_a_gpu_stays_below_the_band_s_top(fit: ModuleType) -> None:
    """Reserved memory and what lies outside torch, over the rows that were and were not fitted."""
    for row in fit.device_rows():
        top = row.formula * 1.05 * RESERVED[2] + CONTEXT_HOPPER
        assert row.reserved + row.outside < top, row.name
