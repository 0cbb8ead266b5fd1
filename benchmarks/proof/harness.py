"""Public benchmarks row by row, by lm-evaluation-harness and by Luthier, on the same local rows.

    python benchmarks/proof/harness.py MODEL ROWS --out FILE [--limit 40] [--only humaneval,gsm8k]

MODEL: a Hugging Face folder. ROWS: a folder with mmlu/, arc/, hellaswag/, truthfulqa/, boolq/, gsm8k/,
humaneval/, mbpp/ in it, as the authors or the Hub give them. Needs `lm_eval` beside Luthier, in an
environment of its own. The harness's own task definitions are used, with the rows in place of the Hub's;
TruthfulQA without the six fixed examples that the harness puts before each question, GSM8K with the first
five rows of its training file as examples. The harness runs code through a metric of the Hub (code_eval),
which is written anew here: each program in a process of its own, passed if it ends with 0. With --only
the figures of the other benchmarks in FILE are kept.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from luthier.data.tokenizer import load_tokenizer
from luthier.evaluation.benchmarks.judge import Posed, choice_items, judge_by_answer, judge_by_likelihood
from luthier.evaluation.benchmarks.tasks import BENCHMARKS
from luthier.models.generate import TorchGenerator
from luthier.models.load import load_causal, weights_digest
from luthier.models.score import TorchScorer
from luthier.runs.benchmarks import prepare

TASKS = {
    "mmlu": "mmlu_astronomy",
    "arc": "arc_challenge",
    "hellaswag": "hellaswag",
    "truthfulqa": "truthfulqa_mc1",
    "boolq": "boolq",
    "gsm8k": "gsm8k",
    "humaneval": "humaneval",
    "mbpp": "mbpp",
}
CODE_EVAL = """
import subprocess
import sys

import datasets
import evaluate


class CodeEval(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        kinds = datasets.Features({"predictions": datasets.Sequence(text), "references": text})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=kinds)

    def _compute(self, predictions, references, k=(1,), num_workers=1, timeout=10.0):
        passed = 0
        for [written], tests in zip(predictions, references):
            program = [sys.executable, "-I", "-c", written + "\\n" + tests]
            try:
                done = subprocess.run(program, capture_output=True, timeout=timeout, check=False)
                passed += done.returncode == 0
            except subprocess.TimeoutExpired:
                pass
        return {"pass@1": passed / len(references)}, {}
"""
"""The metric that the harness would fetch."""


def rows_of(posed: Posed) -> list[dict[str, Any]]:
    """The files' rows again, in the form of the Hub."""
    found = []
    lines = {}
    for row in posed.rows:
        if row.file not in lines:
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
    if name == "gsm8k":
        shown = folder / "gsm8k-train.jsonl"
        lines = [{"question": one.text, "answer": one.shown} for one in posed.examples[""]]
        shown.write_text("".join(json.dumps(line) + "\n" for line in lines))
        files["train"] = str(shown)
        made["training_split"], made["fewshot_split"] = "train", "train"
        made["fewshot_config"] = {"sampler": "first_n"}
    for key in ("tag", "include", "task_alias"):
        made.pop(key, None)
    return {**made, "dataset_kwargs": {"data_files": files}}


def choices(name: str, posed: Posed, samples: list[dict[str, Any]], scorer: TorchScorer) -> dict[str, Any]:
    """Log-probabilities and scores of both, row by row."""
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
    return {"task": TASKS[name], "largest": worst, "equal": same, "rows": rows}


def answers(
    name: str,
    posed: Posed,
    samples: list[dict[str, Any]],
    generator: TorchGenerator,
    longest: int | None,
) -> dict[str, Any]:
    """Written answers and scores of both, row by row: lengths of the answers, not their texts."""
    ours = judge_by_answer(generator, posed, max_new_tokens=longest)
    rows = []
    for place, mine in enumerate(ours.rows):
        of_row = {one["filter"]: one for one in samples if one["doc_id"] == place}
        first = next(iter(of_row.values()))
        theirs_said = str(first["resps"][0][0])
        if name == "gsm8k":
            theirs = [of_row["strict-match"]["exact_match"], of_row["flexible-extract"]["exact_match"]]
        else:
            key = next(key for key in ("pass@1", "pass_at_1", "pass_at_k") if key in first)
            found = first[key]
            theirs = [float(found["pass@1"] if isinstance(found, dict) else found)]
        said = mine.answer.split("\n\n[failed")[0].split("\n\n[timeout")[0]
        rows.append(
            {
                "id": mine.id,
                "same_text": said.strip() == theirs_said.strip(),
                "characters": len(theirs_said),
                "theirs": theirs,
                "ours": list(mine.scores.values()),
            }
        )
    same = sum(row["theirs"] == row["ours"] for row in rows)
    texts = sum(row["same_text"] for row in rows)
    right = sum(row["ours"][-1] for row in rows)
    print(
        f"{name}: {len(rows)} rows, {same} scored alike ({right:.0f} right), {texts} answers alike",
        flush=True,
    )
    return {"task": TASKS[name], "equal": same, "same_text": texts, "right": right, "rows": rows}


def main() -> None:
    """Both on every benchmark; one JSON file with every row's figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("rows")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--new-tokens", type=int, help="longest answer of both, not the task's own")
    parser.add_argument("--only", default=",".join(TASKS))
    asked = parser.parse_args()
    os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    here = Path.cwd() / "code_eval"
    here.mkdir(exist_ok=True)
    (here / "code_eval.py").write_text(CODE_EVAL)
    model = load_causal(asked.model, dtype="float32", device="cpu", attention="sdpa")
    digest = weights_digest(asked.model)
    scorer = TorchScorer(model, load_tokenizer(asked.model), label="luthier", weights_digest=digest)
    generator = TorchGenerator(model, scorer.tokenizer, label="luthier", weights_digest=digest)
    theirs = HFLM(pretrained=str(asked.model), dtype="float32", device="cpu", batch_size=1)
    told: dict[str, Any] = {
        "versions": {name: version(name) for name in ("lm_eval", "transformers", "torch")},
        "weights": digest,
        "benchmarks": {},
    }
    if asked.out.exists():
        told["benchmarks"] = json.loads(asked.out.read_text())["benchmarks"]
    for name in asked.only.split(","):
        posed = prepare(BENCHMARKS[name], asked.rows, max_rows=None, shots=None)
        if name == "mmlu":
            kept = tuple(row for row in posed.rows if row.asked.topic == "astronomy")
            posed = Posed(posed.benchmark, kept, posed.examples)
        posed = Posed(posed.benchmark, posed.rows[: asked.limit], posed.examples)
        with tempfile.TemporaryDirectory() as folder:
            made = config(posed, Path(folder))
            done = lm_eval.simple_evaluate(
                model=theirs,
                tasks=[made],
                num_fewshot=posed.benchmark.shots,
                gen_kwargs=None if asked.new_tokens is None else {"max_gen_toks": asked.new_tokens},
                log_samples=True,
                bootstrap_iters=0,
                confirm_run_unsafe_code=True,
            )
        [samples] = done["samples"].values()
        if posed.benchmark.kind == "choice":
            told["benchmarks"][name] = choices(name, posed, samples, scorer)
        else:
            told["benchmarks"][name] = answers(name, posed, samples, generator, asked.new_tokens)
    asked.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
