"""A whole training comes to what TRL's comes to, step by step: same weights, rows, order and settings."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luthier.schema.recipe import TrainingChoice
from luthier.tasks.causal import causal_objective
from luthier.training.loop import fit
from preference_case import model_of
from sft_case import BATCH, CLIP, DECAY, HELD_OUT, RATE, STEPS, TRAIN

TRL = json.loads((Path(__file__).parent / "trl_sft.json").read_text())
"""What TRL 1.16 came to; record_trl_sft.py made the file."""


def packed(rows: list[dict[str, list[int]]], *, at_once: bool) -> Any:
    """Rows as a micro-batch: each padded to the longest, or all in one row end to end."""
    lines = [rows] if at_once else [[row] for row in rows]
    width = max(sum(len(row["input_ids"]) for row in line) for line in lines)
    fields: dict[str, list[list[int]]] = {
        "input_ids": [], "labels": [], "position_ids": [], "document_ids": [],
    }  # fmt: skip
    for line in lines:
        ids = [one for row in line for one in row["input_ids"]]
        labels = [one for row in line for one in row["labels"]]
        positions = [place for row in line for place in range(len(row["input_ids"]))]
        names = [number for number, row in enumerate(line, 1) for _ in row["input_ids"]]
        missing = width - len(ids)
        for name, values, fill in (
            ("input_ids", ids, 0), ("labels", labels, -100), ("position_ids", positions, 0),
            ("document_ids", names, 0),
        ):  # fmt: skip
            fields[name].append(values + [fill] * missing)
    return SimpleNamespace(**{name: torch.tensor(values) for name, values in fields.items()})


class Source:
    """The rows in their order, in so many micro-batches a step."""

    def __init__(self, micro: int, *, at_once: bool) -> None:
        self.micro, self.at_once = micro, at_once

    def steps(self, epoch: int) -> int:
        del epoch
        return STEPS

    def batches(self, epoch: int, step: int) -> list[Any]:
        del epoch
        chosen = TRAIN[step * BATCH : (step + 1) * BATCH]
        size = BATCH // self.micro
        return [packed(chosen[i : i + size], at_once=self.at_once) for i in range(0, BATCH, size)]

    def rows(self, epoch: int, step: int) -> list[str]:
        del epoch, step
        return []


@pytest.mark.parametrize("at_once", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("micro", [1, 2])
def test_thirty_steps_are_those_of_trl(tmp_path: Path, micro: int, *, at_once: bool) -> None:
    model = model_of(0)
    choice = TrainingChoice(
        max_steps=STEPS, learning_rate=RATE, schedule="cosine", warmup_share=0.0, weight_decay=DECAY,
        max_grad_norm=CLIP, batch_size=BATCH, micro_batch_size=BATCH // micro, sequence_length=64,
        evaluate_every=STEPS, checkpoint_every=STEPS, select="last", activation_checkpointing="none",
    )  # fmt: skip
    events: list[dict[str, Any]] = []
    fit(
        model, causal_objective(model), Source(micro, at_once=at_once), [packed(HELD_OUT, at_once=at_once)],
        choice=choice, seed=1, directory=tmp_path, recipe_digest="r", device=torch.device("cpu"),
        on_metrics=events.append,
    )  # fmt: skip
    steps = [event for event in events if event["kind"] == "step"]
    theirs = TRL[str(micro)]
    assert theirs["losses"][-1] < 0.7 * theirs["losses"][0], "it learns"
    assert [step["loss"] for step in steps] == pytest.approx(theirs["losses"], rel=2e-4)
    assert [step["grad_norm"] for step in steps] == pytest.approx(theirs["norms"], rel=2e-3)
    (held_out,) = [event["loss"] for event in events if event["kind"] == "validation"]
    assert held_out == pytest.approx(theirs["held_out"], rel=2e-4)
