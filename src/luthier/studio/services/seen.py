"""What the model sees and says: rows with their loss mask, and answers before and after."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

from luthier.errors import Unsupported
from luthier.runs.directory import RunDirectory
from luthier.runs.stages import load_results
from luthier.schema.results import EvalResult

SECONDS = 120
MOST_SAMPLES = 12
_one = threading.Lock()


def batch(run: RunDirectory, rows: int = 4) -> list[dict[str, Any]]:
    """The first training rows rendered and masked as they are trained on. Remembered beside the run.

    Read in a process of its own: a tokenizer of the server's would stay in its memory.
    Errors: Unsupported with the reason.
    """
    kept = run.path / "batch_seen.json"
    with _one:
        try:
            found = json.loads(kept.read_text(encoding="utf-8"))
            if len(found) >= rows:
                return list(found[:rows])
        except (OSError, ValueError):
            pass
        words = [sys.executable, "-m", "luthier", "data", "show", str(run.path / "recipe.yaml"), "--json"]
        try:
            done = subprocess.run(
                [*words, "--rows", str(rows)], capture_output=True, text=True, timeout=SECONDS, check=False
            )
            answer = json.loads(done.stdout or "{}")
        except subprocess.TimeoutExpired:
            raise Unsupported(f"rendering rows took longer than {SECONDS} seconds") from None
        except ValueError:
            answer = {}
        if done.returncode or "rows" not in answer:
            error = answer.get("error") or {}
            reason = error.get("message") if isinstance(error, dict) else str(error)
            raise Unsupported(
                f"the rows cannot be shown: {reason or done.stderr.strip()[-300:] or 'no answer'}",
                hint="the data or the model may have moved since the run was prepared",
            )
        found = list(answer["rows"])
        try:
            kept.write_text(json.dumps(found), encoding="utf-8")
        except OSError:
            return found
        return found


def samples(run: RunDirectory) -> list[dict[str, Any]]:
    """The first prompts by the order of their digests, with what was expected and both answers."""
    base, tuned = load_results(run, "baseline"), load_results(run, "tuned")
    found: list[dict[str, Any]] = []
    for split, result in (tuned or base).items():
        others = {row.id: row for row in base[split].rows} if split in base and tuned else {}
        for row in sorted(result.rows, key=lambda r: r.id)[:MOST_SAMPLES]:
            before = others.get(row.id)
            found.append(
                {
                    "split": split,
                    "prompt": row.prompt,
                    "expected": row.expected,
                    "base": before.answer if before is not None else (None if tuned else row.answer),
                    "tuned": row.answer if tuned else None,
                    "base_score": None if before is None else _score(base[split], before.scores),
                    "tuned_score": _score(result, row.scores) if tuned else None,
                    "metric": result.primary,
                }
            )
    return found[:MOST_SAMPLES]


def course(run: RunDirectory) -> list[dict[str, Any]]:
    """Held-out prompts with what the model said at each evaluation: prompt, expected, answers by step."""
    found: dict[str, dict[str, Any]] = {}
    for values, _ in run.lines("samples"):
        for one in values.get("samples", ()):
            row = found.setdefault(
                one["row"], {"prompt": one["prompt"], "expected": one["expected"], "said": {}}
            )
            row["said"][values["step"]] = one["answer"]  # a step that was done again said it last
    return [{**row, "said": sorted(row["said"].items(), reverse=True)} for row in found.values()]


def _score(result: EvalResult, scores: dict[str, float]) -> float | None:
    return scores.get(result.primary)
