"""The picture of where a step's time goes is that of the raw rows, and its parts are the whole step."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts import script

ROOT = Path(__file__).parents[2]


picture = script("benchmarks/speed/profile_picture")


def test_the_picture_is_that_of_the_rows() -> None:
    drawn = (ROOT / "docs" / "pictures" / "step-time.svg").read_text()
    assert drawn == picture.picture(picture.steps()), "run python benchmarks/speed/profile_picture.py"
    ElementTree.fromstring(drawn)


def test_parts_are_the_whole_step() -> None:
    found = picture.steps()
    files = (ROOT / "benchmarks" / "speed" / "results").glob("*.jsonl")
    rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert len(found) == sum("kernels_ms" in row for row in rows)
    for step in found:
        kernels = sum(spent for kind, spent in step.parts.items() if kind != "idle")
        assert sum(step.parts.values()) == pytest.approx(max(step.milliseconds, kernels))
        assert step.of_datasheet < step.of_measured < 1.5  # eight-bit products pass the 16-bit rate


def test_what_stood_twice_or_under_another_name_is_counted_once() -> None:
    row = {
        "asked": "model=qwen2.5-3b,method=full,tokens=4096,optimizer=adamw-bf16,graphs=1",
        "step_ms": 100.0, "tokens_per_second": 1.0, "tflops": 340.0,
        "kernels_ms": {"products": 50.0, "fused elementwise": 20.0, "optimiser": 12.0},
        "largest_ms": {"triton_red_fused_logsumexp_0": 4.0, "Optimizer.step#AdamW.step": 5.0},
    }  # fmt: skip
    step = picture.step_of(row, "h100.jsonl", 680.0)
    assert step.parts == {
        "products": 50.0, "loss": 4.0, "fused elementwise": 16.0, "optimiser": 7.0, "idle": 23.0
    }  # fmt: skip
    assert step.of_measured == 0.5
    assert step.label == "Qwen2.5-3B, full, 4,096 tokens, adamw-bf16, recorded"
    row["kernels_ms"] = {"products": 50.0, "loss": 4.0, "fused elementwise": 16.0, "optimiser": 7.0}
    row["largest_ms"] = {"_cross_entropy": 4.0}
    assert picture.step_of(row, "h100.jsonl", 680.0).parts == step.parts
