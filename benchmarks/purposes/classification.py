"""Classifiers trained by Luthier and by transformers' Trainer as its guide does; see ``run.py``.

Both results are loaded by transformers and judged by the same code, temperature and thresholds of both
chosen on the same validation rows.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import DEVICE, Job, Pace, Row, clock, fitted, read, trainer_words, training_words

from luthier.data.inputs import load_inputs
from luthier.data.tokenizer import load_tokenizer
from luthier.evaluation.calibration import (
    choose_refusal,
    choose_thresholds,
    fit_temperature,
    probabilities,
)
from luthier.schema.classification import Decision
from luthier.schema.recipe import Recipe
from luthier.tasks.classification import ClassificationTask, start_at_shares

ONE, SEVERAL = "multi-class-classification", "multi-label-classification"
OUTSIDE = "oos"
SAME_START = ", same start"
"""Jobs whose other arm begins with Luthier's head: each label as likely as it is in training."""
LENGTH = 64
"""Most tokens of a text; 1 in 1,000 is longer."""


def labels_of(rows: Sequence[Row]) -> list[str]:
    """All labels in the order of the alphabet."""
    return sorted({one for row in rows for one in named(row)})


def named(row: Row) -> list[str]:
    """The row's labels."""
    return list(row["labels"]) if "labels" in row else [row["label"]]


def hot(rows: Sequence[Row], labels: Sequence[str]) -> np.ndarray:
    """[rows, labels] of 0 and 1."""
    found = np.zeros((len(rows), len(labels)))
    for place, row in enumerate(rows):
        for one in named(row):
            found[place, labels.index(one)] = 1
    return found


def logits_of(folder: Path, rows: Sequence[Row], labels: Sequence[str]) -> np.ndarray:
    """[rows, labels] as transformers computes them, in fp32."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(DEVICE).eval()
    assert [model.config.id2label[place] for place in range(len(labels))] == list(labels)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]["text"]))
    found = np.zeros((len(rows), len(labels)))
    for start in range(0, len(order), 256):
        places = order[start : start + 256]
        texts = [rows[place]["text"] for place in places]
        batch = tokenizer(texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
        with torch.inference_mode():
            found[places] = model(**batch.to(DEVICE)).logits.double().cpu().numpy()
    return found


def single(held: list[Row], labels: list[str]) -> Callable[[Path], dict[str, float]]:
    """Accuracy and macro-F1."""
    from sklearn.metrics import f1_score

    gold = np.array([labels.index(row["label"]) for row in held])

    def judge(folder: Path) -> dict[str, float]:
        best = logits_of(folder, held, labels).argmax(axis=1)
        return {
            "accuracy": float((best == gold).mean()),
            "macro_f1": float(f1_score(gold, best, average="macro", zero_division=0)),
        }

    return judge


def refusing(chosen_on: list[Row], held: list[Row], labels: list[str]) -> Callable[[Path], dict[str, float]]:
    """In-scope accuracy and out-of-scope recall under the confidence chosen on the validation rows."""

    def parts(folder: Path, rows: list[Row], temperature: float | None) -> Any:
        outside = np.array([row["label"] == OUTSIDE for row in rows])
        gold = np.array(
            [-1 if out else labels.index(row["label"]) for row, out in zip(rows, outside, strict=True)]
        )
        logits = logits_of(folder, rows, labels)
        if temperature is None:
            temperature = fit_temperature(logits[~outside], gold[~outside], multi=False)
        plain = Decision(kind="multi-class", labels=tuple(labels), temperature=temperature)
        chances = probabilities(logits, plain)
        return outside, chances.argmax(axis=1) == gold, chances.max(axis=1), temperature

    def judge(folder: Path) -> dict[str, float]:
        outside, right, sure, temperature = parts(folder, chosen_on, None)
        bar = choose_refusal(sure, right.astype(float), outside.astype(float))
        outside, right, sure, _ = parts(folder, held, temperature)
        return {
            "accuracy": float(right[~outside].mean()),
            "in_scope_accuracy": float((right & (sure >= bar))[~outside].mean()),
            "out_of_scope_recall": float((sure < bar)[outside].mean()),
        }

    return judge


def several(chosen_on: list[Row], held: list[Row], labels: list[str]) -> Callable[[Path], dict[str, float]]:
    """Micro- and macro-F1 at one half, and at thresholds chosen on the validation rows."""
    from sklearn.metrics import f1_score

    def judge(folder: Path) -> dict[str, float]:
        plain = Decision(kind="multi-label", labels=tuple(labels))
        first, second = (probabilities(logits_of(folder, rows, labels), plain) for rows in (chosen_on, held))
        bars = np.array(choose_thresholds(first, hot(chosen_on, labels)))
        gold, found = hot(held, labels), {}
        for name, given in (("", second >= bars), ("_at_half", second >= 0.5)):
            for mean in ("micro", "macro"):
                found[f"{mean}_f1{name}"] = float(f1_score(gold, given, average=mean, zero_division=0))
        return found

    return judge


def jobs(data: Path, tiny: bool) -> list[Job]:
    """Everything that is compared. Cuts: 2,000 rows of banking77 are held out, 20,000 of goemotions train."""
    few, batch = (40, 4) if tiny else (None, 64)

    def made(name: str, rows: list[Row], steps: int, rate: float, judge: Any) -> Job:
        purpose, loss = (SEVERAL, "bce") if "labels" in rows[0] else (ONE, "cross-entropy")
        return Job(name, purpose, rows, loss, batch, 2 if tiny else steps, rate, LENGTH, judge)

    banking = read(data / "banking77" / "train.jsonl")
    random.Random(0).shuffle(banking)
    held, banking = banking[:2000][:few], banking[2000:]
    clinc = [row for row in read(data / "clinc150" / "train.jsonl") if row["label"] != OUTSIDE]
    every = 100 if tiny else 1
    asked = {name: read(data / "clinc150" / f"{name}.jsonl")[::every] for name in ("validation", "test")}
    feelings = [
        {"text": row["text"], "labels": row["labels"]} for row in read(data / "goemotions" / "train.jsonl")
    ]
    random.Random(0).shuffle(feelings)
    judged = read(data / "goemotions" / "validation.jsonl")[::every]
    half = len(judged) // 2
    many = labels_of(feelings)
    return [
        made("banking77", banking, 252, 2e-4, single(held, labels_of(banking))),
        made("clinc150", clinc, 300, 2e-4, refusing(asked["validation"], asked["test"], labels_of(clinc))),
        *(
            made(name, feelings[:20_000], 250, 1e-4, several(judged[:half], judged[half:], many))
            for name in ("goemotions", f"goemotions{SAME_START}")
        ),
    ]


def ours(job: Job, model: Path, seed: int, out: Path, dtype: str) -> dict[str, float]:
    """Train with Luthier; the merged folder is out."""
    rows = out.parent / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in job.rows))
    recipe = Recipe.model_validate(
        {
            "task": job.purpose,
            "model": {"id": str(model), "dtype": dtype, "attention": "sdpa"},
            "method": {"name": "full"},
            "data": {"train": str(rows), "test": str(rows), "validation_share": 0, "over_length": "truncate"},
            "training": training_words(job),
            "classification": {"labels": labels_of(job.rows)},
            "seed": seed,
        }
    )
    tokenizer = load_tokenizer(model)
    data = load_inputs(recipe, tokenizer, base=Path("/"), sequence_length=job.length)
    return fitted(lambda: ClassificationTask(recipe, model, tokenizer, device=DEVICE), data.splits, out, job)


def theirs(job: Job, model: Path, seed: int, out: Path, dtype: str) -> dict[str, float]:
    """Train with transformers' Trainer as its text classification guide does; the saved folder is out."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    torch.manual_seed(seed)
    labels = labels_of(job.rows)
    places = {label: place for place, label in enumerate(labels)}
    many = job.purpose == SEVERAL
    gold = (
        [hot([row], labels)[0].tolist() for row in job.rows]
        if many
        else [places[row["label"]] for row in job.rows]
    )
    pace = Pace()
    with clock() as took:
        model_ = AutoModelForSequenceClassification.from_pretrained(
            model,
            dtype=torch.float32,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id=places,
            problem_type="multi_label_classification" if many else "single_label_classification",
        )
        if job.name.endswith(SAME_START):  # the default head says one half of every label
            counts = hot(job.rows, labels).sum(axis=0)
            start_at_shares(model_, counts.tolist(), len(job.rows))
        tokenizer = AutoTokenizer.from_pretrained(model)
        began = time.perf_counter()
        rows = Dataset.from_dict({"text": [row["text"] for row in job.rows], "label": gold}).map(
            lambda batch: tokenizer(batch["text"], truncation=True, max_length=LENGTH),
            batched=True,
            remove_columns=["text"],
        )
        trainer = Trainer(
            model=model_,
            args=TrainingArguments(
                per_device_train_batch_size=job.batch_size,
                train_sampling_strategy="group_by_length" if job.fastest else "random",
                **trainer_words(job, seed, out, dtype),
            ),
            train_dataset=rows,
            callbacks=[pace.listener(job.steps)],
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
        trained = time.perf_counter() - began
    model_.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {**took, "train_seconds": trained, **pace.rows(job.batch_size)}
