"""The table of agreement: every line at rounding, for each metric that papers have a package for."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "proof" / "agreement.json"
DOCS = Path(__file__).parents[2] / "docs" / "proof.md"


def test_every_metric_agrees_with_its_reference_and_the_page_says_so() -> None:
    told = json.loads(RESULTS.read_text())
    assert all(row["largest"] < 1e-9 and row["cases"] >= 300 for row in told["rows"])
    metrics = {row["metric"].split(" (")[0] for row in told["rows"]}
    expected = {"chrf", "bleu", "rouge_l", "macro_f1", "accuracy", "spearman", "ndcg@10", "calls_accepted"}
    assert expected <= metrics
    page = DOCS.read_text()
    for metric in metrics:
        assert f"| `{metric}` |" in page
    for package, version in told["versions"].items():
        if any(row["reference"].startswith(package) for row in told["rows"]):
            assert f"{package} {version}" in page


def test_calls_were_both_accepted_and_refused() -> None:
    rows = [r for r in json.loads(RESULTS.read_text())["rows"] if r["metric"].startswith("calls_accepted")]
    assert len(rows) == 3
    for row in rows:
        assert 0.1 < row["accepted"] / row["cases"] < 0.6
