"""The table of the page about purposes, from the raw results of ``run.py``:

    python benchmarks/purposes/table.py benchmarks/purposes/results.jsonl

A difference is within the spread where it is no larger than the deviation between seeds of both arms
together, sqrt(s1^2 + s2^2).
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
OURS = "luthier"
FIGURES = {
    "stsb": {"spearman": "Spearman"},
    "snli": {"triplet_accuracy": "nearer positive", "spearman": "Spearman on stsb"},
    "scifact": {"ndcg@10": "nDCG@10"},
    "scifact-reranking": {"ndcg@10": "nDCG@10, reranked"},
    "banking77": {"accuracy": "accuracy", "macro_f1": "macro-F1"},
    "clinc150": {"accuracy": "accuracy in scope", "out_of_scope_recall": "out-of-scope recall"},
    "goemotions": {"micro_f1": "micro-F1", "macro_f1": "macro-F1"},
    "chat": {"nats": "nats a token", "exact": "answered exactly"},
    "preference": {"accuracy": "preference accuracy", "margin": "margin of rewards", "dpo": "DPO loss"},
}


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; none for one."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def shown(values: Sequence[float]) -> str:
    """Mean, deviation and, where it is not three, how many seeds."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    count = "" if len(values) == 3 else f" ({len(values)} seeds)"
    return f"{statistics.fmean(values):.3f} ± {spread(values):.3f}{count}"


def setting_of(row: Row) -> tuple[Any, ...]:
    """What two trainings must share to stand in one line."""
    return tuple(row[name] for name in ("job", "dtype", "device", "rows", "steps"))


def lines_of(rows: Sequence[Row]) -> list[str]:
    """One line a figure."""
    head = "| data | trained | judged by | untouched | Luthier | specialist | difference | time | memory |"
    found = [head, "|---|---|---|---|---|---|---|---|---|"]
    for setting in dict.fromkeys(map(setting_of, rows)):
        mine, job, dtype = [row for row in rows if setting_of(row) == setting], setting[0], setting[1]
        ours = [row for row in mine if row["arm"] == OURS]
        other = [row for row in mine if row["arm"] not in (OURS, "base")]
        if not ours or not other:
            continue
        facts = f"{mine[-1]['steps']} steps of {mine[-1]['batch']}, {dtype}"
        time, memory = ratio(ours, other, "train_seconds"), ratio(ours, other, "peak")
        name = job
        for figure, words in FIGURES[job.partition(",")[0]].items():
            if figure not in ours[0]:  # a figure that was not taken yet when this was measured
                continue
            base = [row[figure] for row in mine if row["arm"] == "base"]
            left, right = [row[figure] for row in ours], [row[figure] for row in other]
            gap = statistics.fmean(left) - statistics.fmean(right)
            within = abs(gap) <= math.hypot(spread(left), spread(right))
            said = f"{gap:+.3f}{', within the spread' if within else ''}"
            cells = [name, facts, words, shown(base), shown(left), f"{shown(right)}, {other[0]['arm']}", said]
            found.append("| " + " | ".join([*cells, time, memory]) + " |")
            name, facts, time, memory = "", "", "", ""
    return found


def ratio(ours: Sequence[Row], other: Sequence[Row], name: str) -> str:
    """Mean of ours over mean of theirs."""
    if not all(name in row for row in (*ours, *other)):
        return ""
    left, right = (statistics.fmean(row[name] for row in arm) for arm in (ours, other))
    return f"{left / right:.2f}"


def main() -> None:
    """Print the table, with devices and versions below it."""
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    print("\n".join(lines_of(rows)))
    for device, versions in {(row["device"], json.dumps(row["versions"], sort_keys=True)) for row in rows}:
        print(f"\n{device}: {', '.join(f'{k} {v}' for k, v in json.loads(versions).items())}")


if __name__ == "__main__":
    main()
