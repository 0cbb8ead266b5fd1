"""Multiple choice row by row, by lm-evaluation-harness and by Luthier, on the same local rows.

    python benchmarks/proof/harness.py MODEL ROWS --out FILE [--limit 40]

MODEL: a Hugging Face folder. ROWS: a folder with mmlu/, arc/, hellaswag/, truthfulqa/, boolq/ in it, as
the authors or the Hub give them. Needs `lm_eval` beside Luthier, in an environment of its own. The
harness's own task definitions are used, with the rows in place of the Hub's; TruthfulQA without the six
fixed examples that the harness puts before each question.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from luthier.data.tokenizer import load_tokenizer
from luthier.evaluation.benchmarks.judge import Posed, choice_items, judge_by_likelihood
from luthier.evaluation.benchmarks.tasks import BENCHMARKS
from luthier.models.load import load_causal, weights_digest
from luthier.models.score import TorchScorer
from luthier.runs.benchmarks import prepare

TASKS = {
    "mmlu": "mmlu_astronomy",
    "arc": "arc_challenge",
    "hellaswag": "hellaswag",
    "truthfulqa": "truthfulqa_mc1",
    "boolq": "boolq",
}


def rows_of(posed: Posed) -> list[dict[str, Any]]:
    """The files' rows again, in the form of the Hub."""
    found = []
    lines = {}
    for row in posed.rows:
        if row.file not in lines:
            import gzip

            opened = gzip.open if row.file.endswith(".gz") else open
            with opened(row.file, "rt", encoding="utf-8") as file:
                lines[row.file] = file.read().split("\n")
        value = json.loads(lines[row.file][row.line - 1])
        name = posed.benchmark.name
        if name == "arc" and not isinstance(value["choices"], dict):
            letters = list("ABCDE"[: len(value["choices"])])
            value["answerKey"] = letters[value["answer"]]
            value["choices"] = {"text": value["choices"], "label": letters}
        if name == "truthfulqa":
            targets = value["mc1_targets"]
            if "choices" not in targets:
                targets = {"choices": list(targets), "labels": list(targets.values())}
            value = {"question": value["question"], "mc1_targets": targets}
        if name == "boolq":
            value["label"] = int(value.get("label", value.get("answer")))
        if name == "hellaswag":
            value["label"] = str(value["label"])
        found.append(value)
    return found


def config(posed: Posed, folder: Path) -> dict[str, Any]:
    """The harness's own task over these rows."""
    name = posed.benchmark.name
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(posed)))
    split = "validation" if name in ("hellaswag", "truthfulqa", "boolq") else "test"
    files = {split: str(path)}
    tasks = TaskManager()
    made: dict[str, Any] = {
        **tasks._factory._load_full_config(tasks._entry(TASKS[name])),
        "task": TASKS[name],
        "dataset_path": "json",
        "dataset_name": None,
        "training_split": None,
        "validation_split": None,
        "test_split": None,
        f"{split}_split": split,
    }
    if name == "mmlu":
        shown = folder / "mmlu-dev.jsonl"
        [examples] = [found for topic, found in posed.examples.items() if topic == "astronomy"]
        shown.write_text(
            "".join(
                json.dumps(
                    {
                        "question": one.text.split("\nA. ")[0],
                        "choices": [part[3:] for part in one.text.split("\n")[-5:-1]],
                        "answer": one.right,
                    }
                )
                + "\n"
                for one in examples
            )
        )
        files["dev"] = str(shown)
    if name == "truthfulqa":
        made["doc_to_text"] = "Q: {{question}}\nA:"
        made["doc_to_target"] = "{{mc1_targets.labels.index(1)}}"
    for key in ("tag", "include", "task_alias"):
        made.pop(key, None)
    return {**made, "dataset_kwargs": {"data_files": files}}


def main() -> None:
    """Both on every benchmark; one JSON file with every row's figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("rows")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=None)
    asked = parser.parse_args()
    model = load_causal(asked.model, dtype="float32", device="cpu", attention="sdpa")
    digest = weights_digest(asked.model)
    scorer = TorchScorer(model, load_tokenizer(asked.model), label="luthier", weights_digest=digest)
    theirs = HFLM(pretrained=str(asked.model), dtype="float32", device="cpu", batch_size=4)
    told: dict[str, Any] = {
        "versions": {name: version(name) for name in ("lm_eval", "transformers", "torch")},
        "weights": digest,
        "benchmarks": {},
    }
    for name, task in TASKS.items():
        posed = prepare(BENCHMARKS[name], asked.rows, max_rows=None, shots=None)
        if name == "mmlu":
            kept = tuple(row for row in posed.rows if row.asked.topic == "astronomy")
            posed = Posed(posed.benchmark, kept, posed.examples)
        posed = Posed(posed.benchmark, posed.rows[: asked.limit], posed.examples)
        with tempfile.TemporaryDirectory() as folder:
            done = lm_eval.simple_evaluate(
                model=theirs,
                tasks=[config(posed, Path(folder))],
                num_fewshot=5 if name == "mmlu" else 0,
                log_samples=True,
                bootstrap_iters=0,
            )
        [samples] = done["samples"].values()
        samples = sorted(samples, key=lambda one: one["doc_id"])
        ours = judge_by_likelihood(scorer, posed)
        rows = []
        for item, mine, sample in zip(choice_items(posed), ours.rows, samples, strict=True):
            rows.append(
                {
                    "id": item.id,
                    "nats": [float(one[0][0]) for one in sample["resps"]],
                    "acc": sample["acc"],
                    **({"acc_norm": sample["acc_norm"]} if "acc_norm" in sample else {}),
                    "ours": list(mine.figures.values()),
                    "our_acc": mine.scores["acc"],
                    "our_acc_norm": mine.scores["acc_norm"],
                }
            )
        worst = max(abs(a - b) for row in rows for a, b in zip(row["nats"], row["ours"], strict=True))
        same = sum(
            row["acc"] == row["our_acc"] and row.get("acc_norm", row["our_acc_norm"]) == row["our_acc_norm"]
            for row in rows
        )
        print(f"{name}: {len(rows)} rows, {same} equal, largest difference {worst:.2g} nats", flush=True)
        told["benchmarks"][name] = {"task": task, "largest": worst, "equal": same, "rows": rows}
    asked.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
