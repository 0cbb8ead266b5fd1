"""Make the advisor's table of methods from the raw rows of `methods.py`.

    python benchmarks/speed/methods_table.py            rewrites src/luthier/catalog/methods.json
    python benchmarks/speed/methods_table.py --check    says whether it is out of date

Of all ``results/*methods.jsonl`` the rows of one card count: the one with the most pairs of method and seed.
Of a pair that was measured twice the later row counts; rows that failed count nowhere. Rows of the files in
`BESIDE` ran beside each other on one GPU: their losses and peaks count, the times are those of a card whose
rows ran alone.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "src" / "luthier" / "catalog" / "methods.json"
NAMES = {"full": "full", "lora": "lora", "qlora": "qlora", "lora, FP8 base": "float8-lora"}
MODEL, DATA, ROWS = "SmolLM2-135M-Instruct", "Disfl-QA, questions rewritten as they were meant", 16
BESIDE = ("h200_methods.jsonl",)
Row = dict[str, Any]


def rows_of_one_card(rows: list[Row]) -> dict[tuple[str, int], Row]:
    """(method, seed) -> its last good row, of the card that has the most of them."""
    cards: dict[str, dict[tuple[str, int], Row]] = defaultdict(dict)
    for row in rows:
        if "error" not in row:
            cards[row["card"]][row["method"], row["seed"]] = row
    return max(cards.values(), key=len)


def table(files: dict[str, list[Row]]) -> dict[str, Any]:
    """The table's values; `luthier.schema.methods.MeasuredMethods` says what they are."""
    found = rows_of_one_card([row for rows in files.values() for row in rows])
    timed = rows_of_one_card([row for name, rows in files.items() if name not in BESIDE for row in rows])
    first = next(iter(found.values()))
    methods = []
    for method, name in NAMES.items():
        own = [row for (of, _), row in sorted(found.items(), key=lambda item: item[0][1]) if of == method]
        steps = [row["step_ms"] for (of, _), row in timed.items() if of == method]
        if not own or not steps:
            raise SystemExit(f"no row of {method}")
        methods.append(
            {
                "name": name,
                "seeds": [row["seed"] for row in own],
                "trained": own[0]["trained_parameters"],
                "saved": own[0]["saved_bytes"],
                "step": round(statistics.median(steps) / 1e3, 6),
                "peak": max(row["training_peak"] for row in own),
                "losses": [round(row["validation_loss"], 5) for row in own],
            }
        )
    return {
        "model": MODEL,
        "weights": methods[0]["trained"],
        "data": DATA,
        "steps": first["steps"],
        "rows": ROWS,
        "tokens": round(statistics.mean(row["tokens"] for row in found.values()), 1),
        "card": first["card"],
        "timed_on": next(iter(timed.values()))["card"],
        "versions": first["versions"],
        "methods": methods,
    }


def raw_rows(folder: Path = HERE / "results") -> dict[str, list[Row]]:
    """File -> its rows."""
    files = sorted(folder.glob("*methods.jsonl"))
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in files}


def main() -> int:
    text = json.dumps(table(raw_rows()), indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        same = OUT.read_text() == text
        print("up to date" if same else f"out of date: {OUT.name}")
        return int(not same)
    OUT.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
