"""The advisor's table of methods: what the raw rows say, beside what guide C says."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from luthier.catalog.methods import SHIPPED, measured_methods
from luthier.cli.main import main
from luthier.planning.recommend.claims import C_METHODS, method_claims
from luthier.schema.methods import MeasuredMethods

RESULTS = Path(__file__).parents[2] / "benchmarks" / "speed" / "results"
BESIDE = ("h200_methods.jsonl",)
"""Rows that ran beside each other on one GPU: their times say nothing."""
NAMES = {"full": "full", "lora": "lora", "qlora": "qlora", "float8-lora": "lora, FP8 base"}


def raw(card: str, *, alone: bool = False) -> list[dict[str, Any]]:
    """The raw rows of a card that did not fail. alone: without those that ran beside each other."""
    files = [path for path in sorted(RESULTS.glob("*methods.jsonl")) if not alone or path.name not in BESIDE]
    rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    return [row for row in rows if row["card"] == card and "error" not in row]


def test_the_table_says_what_the_raw_rows_say() -> None:
    found = measured_methods()
    assert [one.name for one in found.methods] == list(NAMES)
    for one in found.methods:
        rows = {row["seed"]: row for row in raw(found.card) if row["method"] == NAMES[one.name]}
        assert set(one.seeds) == set(rows)
        assert one.losses == pytest.approx([rows[seed]["validation_loss"] for seed in one.seeds], abs=1e-5)
        timed = [row for row in raw(found.timed_on, alone=True) if row["method"] == NAMES[one.name]]
        assert one.step == pytest.approx(statistics.median(row["step_ms"] for row in timed) / 1e3, abs=1e-6)
        assert one.peak == max(row["training_peak"] for row in rows.values())
        assert {row["trained_parameters"] for row in rows.values()} == {one.trained}
        assert {row["saved_bytes"] for row in rows.values()} == {one.saved}
        assert {row["steps"] for row in rows.values()} == {found.steps}


def changed(**values: dict[str, Any]) -> MeasuredMethods:
    """The shipped table with other values of some methods, two seeds of each."""
    table = json.loads(SHIPPED.read_text())
    for method in table["methods"]:
        method.update({"seeds": [1, 2], "losses": [0.30, 0.31]} | values.get(method["name"], {}))
    return MeasuredMethods.model_validate_json(json.dumps(table))


def finding(about: str, table: MeasuredMethods | None = None) -> str:
    (claim,) = [claim for claim in method_claims(table) if claim.about == about]
    return claim.finding


def test_every_row_of_the_guide_stands_beside_a_measured_one() -> None:
    claims = method_claims()
    assert [claim.about for claim in claims] == list(C_METHODS)
    for claim in claims:
        assert tuple(claim.guide.values()) == C_METHODS[claim.about]
        assert set(claim.measured) == set(NAMES)
        assert all(claim.measured.values())


def test_what_is_said_of_the_guide_follows_the_figures() -> None:
    assert finding("updates").startswith("does not hold")
    assert finding("updates", changed(lora={"trained": 500_000})) == "holds"
    assert finding("speed of a step", changed(full={"step": 9.0}, qlora={"step": 0.1}, lora={"step": 0.2},
                                              **{"float8-lora": {"step": 0.3}})) == (
        "does not hold: QLoRA is the fastest here"
    )  # fmt: skip
    assert finding("quality ceiling", changed()).startswith("not told apart")
    apart = changed(lora={"losses": [0.40, 0.40]}, qlora={"losses": [0.50, 0.50]})
    assert finding("quality ceiling", apart).startswith("holds: full 0.3050, LoRA 0.4000, QLoRA 0.5000")
    other = changed(full={"losses": [0.60, 0.60]})
    assert finding("quality ceiling", other).startswith("another order here")
    one = changed(qlora={"seeds": [1], "losses": [0.9]})
    assert "not told apart from chance" in finding("quality ceiling", one)


@pytest.mark.parametrize("words", [("--explain",), ("--as-guide", "C")])
def test_the_advisor_shows_it(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as left:
        main(("recommend", "--hardware", "rtx 4090", *words))
    assert not left.value.code
    said = capsys.readouterr().out
    assert "Methods, as guide C has them and as measured" in said
    for claim in method_claims():
        assert claim.about in said
        assert claim.measured["float8-lora"] in said
