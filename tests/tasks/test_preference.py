"""Pairs of answers from rows to a tuned model: TRL's losses, exact resume, what is judged and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.catalog.purposes import check_supported
from luthier.data.preferences import load_preferences, read_held_out
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import DataError, Interrupted, RecipeError, UsageError
from luthier.evaluation.compare import compare
from luthier.schema.protocols import Progress, Splits, TokenRow
from luthier.schema.recipe import PreferenceChoice, Recipe
from luthier.schema.rows import PairTokens, PreferenceChat
from luthier.tasks.causal import CausalObjective, causal_objective
from luthier.tasks.pairs import PairBatches, PairObjective
from luthier.tasks.preference import REFERENCE, PreferenceTask
from luthier.tasks.registry import task_class
from luthier.training.checkpoint import load_weights
from luthier.training.guard import cut
from preference_case import BETA, PAIRS, model_of
from tiny import COLOURS, THINGS, save_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
TRL = json.loads((Path(__file__).parent / "trl_preference.json").read_text())
"""What TRL's trainers made of the same weights and tokens; record_trl.py made the file."""


def told(words: str) -> Progress:
    del words
    return lambda done, total: None


def token_pairs(pairs: Any = PAIRS) -> list[PairTokens]:
    def row(prompt: list[int], answer: list[int], line: int) -> TokenRow:
        ids = np.array([*prompt, *answer], dtype=np.int32)
        return TokenRow(ids, np.arange(len(ids)) >= len(prompt), "pairs", line, f"{line}")

    return [
        PairTokens(row(prompt, better, line), row(prompt, worse, line))
        for line, (prompt, better, worse) in enumerate(pairs, 1)
    ]


CASES: dict[str, tuple[PreferenceChoice, Any, bool]] = {
    "dpo": (PreferenceChoice(beta=BETA), PAIRS, False),
    "dpo_sft": (PreferenceChoice(beta=BETA, sft=0.5), PAIRS, False),
    "dpo_smoothed": (PreferenceChoice(beta=BETA, label_smoothing=0.2), PAIRS[:1], False),
    # TRL adds the prompt to the cross-entropy, as data.train_on: all does here.
    "orpo": (PreferenceChoice(loss="orpo", beta=BETA), PAIRS, True),
}


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("way", ["documents", "padded", "logits"])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_trl(name: str, way: str, at_once: int) -> None:
    choice, pairs, whole = CASES[name]
    model, start = model_of(0), model_of(1)
    causal = causal_objective(model)
    assert causal.head is not None
    assert causal.documents
    if way != "documents":
        causal = CausalObjective(None if way == "logits" else causal.head, documents=False)
    rows = token_pairs(pairs)
    source = PairBatches(rows, batch_size=len(rows), micro_batch_size=at_once, seed=0, pad_id=0, whole=whole)
    references = None
    if choice.loss == "dpo":
        asked = PairObjective(causal_objective(start), choice)
        with torch.no_grad():
            sums, _ = asked.answers(start, source.batch(range(len(rows)), 0.0))
        references = sums[::2] - sums[1::2]
    source = PairBatches(
        rows,
        batch_size=len(rows),
        micro_batch_size=at_once,
        seed=0,
        pad_id=0,
        whole=whole,
        references=references,
    )
    objective = PairObjective(causal, choice)
    total = sum(objective(model, batch).total for batch in source.batches(0, 0)) / len(rows)
    total.backward()
    wanted = TRL[name]
    assert total.item() == pytest.approx(wanted["loss"], abs=1e-5)
    for path, weight in model.named_parameters():
        assert weight.grad.norm().item() == pytest.approx(wanted["gradients"][path], abs=2e-5, rel=1e-4), path


def test_log_probabilities_are_those_of_trl() -> None:
    model = model_of(0)
    objective = PairObjective(causal_objective(model), PreferenceChoice())
    batches = PairBatches(token_pairs(), batch_size=3, micro_batch_size=3, seed=0, pad_id=0)
    sums, counts = objective.answers(model, batches.batch([0, 1, 2], 0.0))
    assert sums[::2].mean().item() == pytest.approx(TRL["dpo"]["logps/chosen"], abs=1e-4)
    assert sums[1::2].mean().item() == pytest.approx(TRL["dpo"]["logps/rejected"], abs=1e-4)
    assert (sums / counts)[::2].mean().item() == pytest.approx(TRL["orpo"]["logps/chosen"], abs=1e-5)
    assert counts.tolist() == [4, 3, 3, 6, 2, 3]


@pytest.mark.parametrize("name", ["dpo", "orpo"])
def test_pieces_of_a_batch_have_the_loss_of_the_whole(name: str) -> None:
    choice, pairs, whole = CASES[name]
    model = model_of(0)
    objective = PairObjective(causal_objective(model), choice)
    batches = PairBatches(
        token_pairs(pairs), batch_size=3, micro_batch_size=3, seed=0, pad_id=0, whole=whole,
        references=torch.tensor([0.1, -0.2, 0.3]),
    )  # fmt: skip
    (batch,) = batches.batches(0, 0)
    parts = cut(batch, 1)
    assert [part.pieces for part in parts] == [2, 1]
    added = sum(objective(model, part).total.item() for part in parts)
    assert added == pytest.approx(objective(model, batch).total.item(), rel=1e-6)
    assert sum(objective.weight(part) for part in parts) == 3


def pair_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """The better answer names the colour in JSON, the worse one says it is unknown."""
    names = [(f"{t} {i}", c) for i in range(20) for t in THINGS for c in COLOURS]
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(names), generator=draw)[:count].tolist()
    return [
        {
            "prompt": f"the {names[i][0]} is {names[i][1]}",
            "chosen": f'{{"colour":"{names[i][1]}"}}',
            "rejected": f"{names[i][1]} is the {names[i][0]}",
        }
        for i in order
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make(
    folder: Path, rows: list[dict[str, Any]] | None = None, **changes: Any
) -> tuple[Recipe, Path, Splits]:
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    if not model.exists():
        save_tiny_model(model)
    data = {
        "train": write(folder / "pairs.jsonl", rows or pair_rows(48)),
        "test": write(folder / "test.jsonl", pair_rows(16, seed=1)),
        "validation_share": 0.2,
        **changes.pop("data", {}),
    }
    recipe = Recipe.model_validate(
        {
            "model": {"id": str(model), "dtype": "float32"},
            "method": changes.pop("method", {"name": "lora", "rank": 4}),
            "data": data,
            "training": {
                "epochs": 2, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 5e-3,
                "sequence_length": 64, "evaluate_every": 5, "checkpoint_every": 1,
                **changes.pop("training", {}),
            },
            "evaluation": {"batch_size": 4, "max_new_tokens": 8, **changes.pop("evaluation", {})},
            "preference": changes,
        }
    )  # fmt: skip
    check_supported(recipe)
    loaded = load_preferences(recipe, load_tokenizer(model), base=Path("/"), sequence_length=64)
    return recipe, model, loaded.splits


def task_of(recipe: Recipe, model: Path) -> PreferenceTask:
    assert task_class(recipe) is PreferenceTask
    return PreferenceTask(recipe, model, load_tokenizer(model))


def fitted(recipe: Recipe, model: Path, splits: Splits, run: Path, **words: Any) -> PreferenceTask:
    task = task_of(recipe, model)
    task.fit(splits, run, recipe_digest="d", on_metrics=words.pop("on_metrics", lambda _: None), **words)
    return task


METHODS = [{"name": "lora", "rank": 4, "dropout": 0.1}, {"name": "qlora", "rank": 4}, {"name": "full"}]


@pytest.mark.parametrize("loss", ["dpo", "orpo"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_tuning_parts_the_answers(tmp_path: Path, method: dict[str, Any], loss: str) -> None:
    rate = 2e-3 if method["name"] == "full" else 1e-2
    recipe, model, splits = make(
        tmp_path, method=method, loss=loss, training={"epochs": 4, "learning_rate": rate}
    )
    task = task_of(recipe, model)
    base = task.judge_base(splits, splits.tests, told=told)["test"]
    if loss == "dpo":
        assert base.metrics["preference_accuracy"].value == 0.5, "a model has no margin over itself"
        assert base.metrics["preference_margin"].value == 0
    seen: list[dict[str, Any]] = []
    run = tmp_path / "run"
    task.fit(splits, run, recipe_digest="d", on_metrics=seen.append)
    if loss == "dpo":
        first = next(one["loss"] for one in seen if one["kind"] == "step")
        assert first == pytest.approx(np.log(2), abs=1e-5), "the first step's model is its own reference"
    assert (run / REFERENCE).exists() == (loss == "dpo" and method["name"] == "full")
    tuned = task.judge_tuned(run, splits.tests, told=told)["test"]
    verdict = compare(base, tuned)
    assert verdict.primary == "preference_accuracy"
    assert tuned.metrics["preference_accuracy"].value > 0.9
    assert next(d for d in verdict.differences if d.metric == "preference_margin").delta.low > 0
    # The base is judged alike after training, whose weights it does not share.
    again = task_of(recipe, model).judge_tuned(run, splits.tests, told=told)["test"]
    assert again.metrics == tuned.metrics
    assert task.judge_base(splits, splits.tests, told=told)["test"].metrics == base.metrics


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_resume_is_exact(tmp_path: Path, method: dict[str, Any]) -> None:
    recipe, model, splits = make(tmp_path, method=method)
    whole = fitted(recipe, model, splits, tmp_path / "whole")
    steps: list[int] = []

    def stop() -> Any:
        return "stop" if len(steps) == 4 else None

    def count(event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            steps.append(1)

    parts = tmp_path / "parts"
    with pytest.raises(Interrupted):
        fitted(recipe, model, splits, parts, on_metrics=count, control=stop)
    found = fitted(recipe, model, splits, parts)
    one, two = (
        load_weights(sorted((folder / "checkpoints").iterdir())[-1]) for folder in (tmp_path / "whole", parts)
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert whole.trained_digest == found.trained_digest


def test_a_reference_of_other_rows_is_not_taken(tmp_path: Path) -> None:
    recipe, model, splits = make(tmp_path, method={"name": "full"})
    run = tmp_path / "run"
    notes: list[dict[str, Any]] = []
    with pytest.raises(Interrupted):
        fitted(recipe, model, splits, run, control=lambda: "stop", on_metrics=notes.append)
    said = [one["text"] for one in notes if one["kind"] == "note"]
    assert any("as the reference" in text for text in said)
    task = task_of(recipe, model)
    again: list[dict[str, Any]] = []
    kept = task._reference(splits, run / REFERENCE, task._checkpoint_digest("d"), again.append)
    assert not again
    assert len(kept["train"]) == len(splits.train)
    task._reference(splits, run / REFERENCE, "another", again.append)
    assert again


def test_an_adapter_that_training_starts_from_is_the_reference(tmp_path: Path) -> None:
    recipe, model, splits = make(tmp_path, training={"epochs": 4, "learning_rate": 1e-2})
    task = fitted(recipe, model, splits, tmp_path / "first")
    adapter = task.save_adapter(tmp_path / "adapter")
    second, model, splits = make(tmp_path, method={"name": "lora", "rank": 4, "init_from": str(adapter)})
    seen: list[dict[str, Any]] = []
    fitted(second, model, splits, tmp_path / "second", on_metrics=seen.append)
    first = next(one["loss"] for one in seen if one["kind"] == "step")
    assert first == pytest.approx(np.log(2), abs=1e-4)
    assert (tmp_path / "second" / REFERENCE).exists()


def test_only_what_follows_the_prompt_is_weighed(tmp_path: Path) -> None:
    def row(thing: str) -> dict[str, Any]:
        turns = [
            {"role": "user", "content": f"the {thing} is red"},
            {"role": "assistant", "content": f"red {thing}"},
            {"role": "user", "content": "the cup is blue"},
        ]
        better, worse = ({"role": "assistant", "content": text} for text in ("blue cup", "pink"))
        return {"chosen": [*turns, better], "rejected": [*turns, worse]}

    _, model, splits = make(tmp_path, [row(thing) for thing in THINGS])
    tokenizer = load_tokenizer(model)
    pair = splits.train[0]
    assert tokenizer.decode(pair.chosen.ids[pair.chosen.trained], skip_special=False) == "blue cup<|im_end|>"
    assert tokenizer.decode(pair.rejected.ids[pair.rejected.trained], skip_special=False) == "pink<|im_end|>"
    held = splits.tests["test"][0]
    assert isinstance(held, PreferenceChat)
    assert held.messages[-1]["content"].startswith('{"colour"')


def test_chats_and_answers_are_judged_too(tmp_path: Path) -> None:
    chats = write(
        tmp_path / "chats.jsonl",
        [
            {
                "messages": [
                    {"role": "user", "content": "the hat is red"},
                    {"role": "assistant", "content": "red"},
                ]
            }
        ]
        * 2,
    )
    recipe, model, splits = make(
        tmp_path,
        data={
            "test": {"pairs": str(tmp_path / "held.jsonl"), "chats": chats},
            "train": write(tmp_path / "held.jsonl", pair_rows(24)),
        },
        evaluation={"metrics": ("preference_accuracy", "chrf")},
    )
    assert isinstance(splits.tests["pairs"][0], PreferenceChat)
    assert not isinstance(splits.tests["chats"][0], PreferenceChat)
    task = task_of(recipe, model)
    found = task.judge_base(splits, splits.tests, told=told)
    assert list(found["pairs"].metrics) == ["preference_accuracy", "chrf"]
    assert list(found["chats"].metrics) == ["chrf"]
    assert found["chats"].primary == "chrf"
    assert len(read_held_out(recipe.data, (chats,), base=Path("/"), name="x")) == 2


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "the hat", "chosen": "red", "rejected": "red"}, "are the same"),
        ({"prompt": "", "chosen": "red", "rejected": "blue"}, "prompt"),
        ({"chosen": "red", "rejected": "blue"}, "no prompt"),
        ({"prompt": "the hat", "chosen": "red", "rejected": ""}, "rejected"),
    ],
)
def test_broken_pairs_are_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    rows = pair_rows(12)
    if "prompt" not in row:
        rows = [{key: one[key] for key in ("chosen", "rejected")} for one in rows]
    with pytest.raises(DataError, match=words) as caught:
        make(tmp_path, [*rows, row] if "prompt" in row else [row] * 12)
    assert "pairs.jsonl" in str(caught.value)


def test_answers_that_the_template_writes_alike_are_refused(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    values = json.loads(settings.read_text())
    values["chat_template"] = values["chat_template"].replace(
        "message['content'] }}", "message['content'].split('#')[0] }}"
    )
    settings.write_text(json.dumps(values))
    rows = [*pair_rows(10), {"prompt": "the hat", "chosen": "red#1", "rejected": "red#2"}]
    with pytest.raises(DataError, match="alike"):
        make(tmp_path, rows)


@pytest.mark.parametrize(("rule", "kept"), [("drop", 36), ("truncate", 37)])
def test_long_pairs_follow_the_rule(tmp_path: Path, rule: str, kept: int) -> None:
    long = {"prompt": "the hat", "chosen": "red " * 60, "rejected": "blue " * 60}
    hopeless = {"prompt": "the hat " * 60, "chosen": "red", "rejected": "blue"}
    rows = [*pair_rows(36), long, hopeless]
    held = write(tmp_path / "held.jsonl", pair_rows(8, seed=3))
    with pytest.raises(DataError, match="longer than 64"):
        make(tmp_path, rows, data={"validation": held})
    _, _, splits = make(tmp_path, rows, data={"validation": held, "over_length": rule})
    assert len(splits.train) == kept
    assert max(len(side.ids) for pair in splits.train for side in (pair.chosen, pair.rejected)) <= 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"packing": True}}, "not packed"),
        ({"data": {"train_on": "last"}}, "no effect on dpo"),
        ({"data": {"train_on": "all"}}, "no effect on dpo"),
        ({"loss": "orpo", "sft": 0.5}, "settings of dpo"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make(tmp_path, **changes)


def test_the_section_belongs_to_chats(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"task": "reranking", "model": {"id": "x"}, "data": {"train": "x.jsonl"}, "preference": {}}
    )
    with pytest.raises(RecipeError, match="another purpose") as caught:
        check_supported(recipe.model_copy(update={"export": None}))
    assert caught.value.hint is not None
    assert "set task: chat" in caught.value.hint


def test_an_unknown_metric_is_refused(tmp_path: Path) -> None:
    recipe, model, _ = make(tmp_path, evaluation={"metrics": ("preference_acuracy",)})
    with pytest.raises(UsageError, match="not a metric"):
        task_of(recipe, model)
