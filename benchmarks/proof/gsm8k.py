"""GSM8K's answers read as numbers by lm-evaluation-harness and by Luthier.

    python -P benchmarks/proof/gsm8k.py GSM8K.jsonl.gz

500 answers, each right and in eight other ways: another row's, without its mark, with other signs around the
number. Needs `lm_eval`; its own filters and metric are called as its task gsm8k calls them.
"""

from __future__ import annotations

import gzip
import json
import random
import sys

from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter

from luthier.evaluation.benchmarks.numbers import flexible_number, same_number, strict_number

STRICT, FLEXIBLE = r"#### (\-?[0-9\.\,]+)", r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
IGNORED = [",", "\\$", "(?s).*#### ", "\\.$"]


def main() -> int:
    """Compare every answer's score."""
    with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(0).shuffle(rows)
    cases = []
    for row, other in zip(rows[:500], [*rows[1:500], rows[0]], strict=True):
        gold, number = row["answer"], row["final"]
        said = [gold, other["answer"], gold.split("####")[0], f"So it is ${number}."]
        said += [gold.replace("#### ", "####"), f"{gold}\n#### 5", f"The answer is {number},000"]
        cases += [(gold, text) for text in (*said, f"#### {number}.", "nothing")]
    wrong = 0
    for name, pattern, select, ours in (
        ("strict_match", STRICT, 0, strict_number),
        ("flexible_match", FLEXIBLE, -1, flexible_number),
    ):
        found = RegexFilter(regex_pattern=pattern, group_select=select)
        theirs = found.apply([[text] for _, text in cases], [{}] * len(cases))
        unlike = right = 0
        for (gold, text), [read] in zip(cases, theirs, strict=True):
            score = exact_match_hf_evaluate([read], [gold], ignore_case=True, regexes_to_ignore=IGNORED)
            right += score["exact_match"] == 1
            unlike += (score["exact_match"] == 1) != same_number(gold, ours(text))
        print(f"{name}: {len(cases)} answers, {right} right, {unlike} scored otherwise")
        wrong += unlike
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
