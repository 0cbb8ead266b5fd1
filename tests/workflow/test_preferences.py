"""Preference tuning from the shipped recipe: train, prove, ship, judge other rows; bad rows are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command import luthier, says
from luthier.catalog.shipped import shipped_recipe
from tiny import COLOURS, THINGS, save_tiny_model

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(300)]

FAST = (
    "model.id=model", "model.dtype=float32", "data.train=pairs.jsonl", "training.epochs=3",
    "training.learning_rate=5e-3", "training.batch_size=8", "training.sequence_length=64",
    "training.evaluate_every=10", "evaluation.max_new_tokens=8",
)  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(start: int, count: int) -> list[dict[str, Any]]:
    """JSON is preferred to a sentence."""
    found = []
    for i in range(start, start + count):
        thing, colour = THINGS[i % 8], COLOURS[i // 8 % 8]
        better, worse = f'{{"colour":"{colour}"}}', f"{colour} is the {thing}"
        found.append({"prompt": f"the {thing} {i} is {colour}", "chosen": better, "rejected": worse})
    return found


def test_from_recipe_to_other_rows(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    write(tmp_path / "pairs.jsonl", pairs(0, 120))
    recipe = str(shipped_recipe("preference-qwen3-1.7b-lora").path)
    shown = json.loads(says(tmp_path, "data", "show", recipe, *FAST, "--json", "-n", "1"))["rows"]
    trained = ["".join(t["text"] for t in row["tokens"] if t["trained"]) for row in shown]
    assert trained == ['{"colour":"red"}<|im_end|>', "red is the ball<|im_end|>"]
    luthier(tmp_path, "setup", "gguf", own_cache=False)
    luthier(tmp_path, "train", recipe, *FAST, "export.gguf=Q8_0", own_cache=False)
    (run,) = (tmp_path / "runs").iterdir()

    def outcome(name: str) -> Any:
        return json.loads((run / f"{name}.json").read_text())["result"]

    (comparison,) = outcome("comparison")
    assert (comparison["primary"], comparison["verdict"]) == ("preference_accuracy", "better")
    main = comparison["differences"][0]
    assert main["baseline"]["value"] == 0.5
    kinds = {artifact["kind"]: artifact for artifact in outcome("artifacts")}
    assert set(kinds) == {"adapter", "merged", "gguf:Q8_0"}
    assert kinds["gguf:Q8_0"]["parity"]["passed"]
    report = (run / "report.html").read_text()
    assert "Preference accuracy" in report
    # Other pairs, and conversations, through the same command.
    held = write(tmp_path / "more.jsonl", pairs(200, 24))
    assert "preference_accuracy" in says(tmp_path, "evaluate", "latest", "--data", str(held))
    chats = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["chosen"]},
            ]
        }
        for row in pairs(300, 12)
    ]
    said = says(tmp_path, "evaluate", "latest", "--data", str(write(tmp_path / "chats.jsonl", chats)))
    assert "field_exact" in said
    # A prompt of training, answered as it was preferred.
    asked = says(tmp_path, "chat", "latest", "--once", pairs(0, 1)[0]["prompt"], "--max-new-tokens", "12")
    assert asked.startswith('{"colour":"')
    again = says(tmp_path, "train", "--resume", "latest")
    assert "Traceback" not in again


def test_orpo_on_a_full_fine_tuning(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    write(tmp_path / "pairs.jsonl", pairs(0, 80))
    (tmp_path / "recipe.yaml").write_text(
        "model: {id: model}\nmethod: {name: full}\ndata: {train: pairs.jsonl}\n"
        "preference: {loss: orpo}\nexport: {gguf: []}\n"
    )
    says(tmp_path, "train", "recipe.yaml", *FAST, "training.learning_rate=2e-3")
    (run,) = (tmp_path / "runs").iterdir()
    (comparison,) = json.loads((run / "comparison.json").read_text())["result"]
    margin = next(d for d in comparison["differences"] if d["metric"] == "preference_margin")
    assert margin["delta"]["low"] > 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "the hat", "chosen": "red", "rejected": "red"}, "are the same"),
        ({"prompt": " ", "chosen": "red", "rejected": "blue"}, "prompt"),
        ({"prompt": "the hat", "chosen": "red"}, "rejected"),
    ],
)
def test_bad_rows_stop_the_run_with_their_line(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    save_tiny_model(tmp_path / "model")
    write(tmp_path / "pairs.jsonl", [*pairs(0, 20), row])
    recipe = str(shipped_recipe("preference-qwen3-1.7b-lora").path)
    said = says(tmp_path, "train", recipe, *FAST, "export.gguf=[]", code=4)
    assert "pairs.jsonl:21" in said
    assert words in said
    assert "Traceback" not in said
