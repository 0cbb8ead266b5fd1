"""Embedders and rerankers trained by Luthier and by sentence-transformers, side by side.

Same base weights, rows, batch, steps, rate and schedule; one process, the two taking turns at going first.
Both results are loaded by sentence-transformers and judged by the same code. For example:

    python benchmarks/purposes/pairs.py --model MINILM --data FOLDER --out benchmarks/purposes/pairs.jsonl

FOLDER holds stsb_multi, snli and scifact. --tiny runs a few steps of everything, to see that it works.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from luthier.data.inputs import load_inputs
from luthier.data.mine import ByWords, MiningRules, mine
from luthier.data.tokenizer import load_tokenizer
from luthier.evaluation.retrieval import correlation, ranked, ranking_scores
from luthier.planning.pairs import settle_pairs
from luthier.schema.recipe import Recipe
from luthier.tasks.reranking import RerankingTask
from luthier.tasks.similarity import SimilarityTask

Row = dict[str, Any]
IN_BATCH = "in-batch-negatives"


@dataclass(frozen=True)
class Job:
    """One comparison: rows in both tools' terms, settings, and how a saved model is judged."""

    name: str
    purpose: str
    rows: list[Row]
    loss: str
    batch_size: int
    steps: int
    rate: float
    length: int
    judge: Callable[[Path], dict[str, float]]


def read(path: Path) -> list[Row]:
    """Rows of a JSONL file, zipped or not."""
    path = path if path.exists() else path.with_name(path.name + ".gz")
    held = path.read_bytes()
    text = (gzip.decompress(held) if path.suffix == ".gz" else held).decode()
    return [json.loads(line) for line in text.splitlines()]


def encoder(folder: Path) -> Any:
    """The saved embedder, as everybody loads it, in fp32."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(
        str(folder), device=DEVICE, local_files_only=True, model_kwargs={"dtype": torch.float32}
    )


def sts(data: Path, most: int | None) -> Callable[[Path], dict[str, float]]:
    """Spearman on the English validation pairs."""
    rows = read(data / "stsb_multi" / "validation_en.jsonl")[:most]
    wanted = np.array([row["score"] for row in rows])

    def judge(folder: Path) -> dict[str, float]:
        model = encoder(folder)
        left = model.encode([row["sentence1"] for row in rows], normalize_embeddings=True)
        right = model.encode([row["sentence2"] for row in rows], normalize_embeddings=True)
        given = np.einsum("rd,rd->r", left, right).astype(np.float64)
        return {"spearman": correlation(given, wanted, by_rank=True)}

    return judge


def nli(data: Path, held: list[Row], most: int | None) -> Callable[[Path], dict[str, float]]:
    """Held-out triplets whose positive is nearer, and Spearman on STS."""
    likeness = sts(data, most)

    def judge(folder: Path) -> dict[str, float]:
        model = encoder(folder)
        names = ("anchor", "positive", "negative")
        a, p, n = (model.encode([row[k] for row in held], normalize_embeddings=True) for k in names)
        right = (a * p).sum(axis=1) > (a * n).sum(axis=1)
        return {**likeness(folder), "triplet_accuracy": float(right.mean())}

    return judge


@dataclass(frozen=True)
class SciFact:
    """Queries, abstracts and judgements."""

    corpus: dict[str, str]
    queries: dict[str, dict[str, str]]
    qrels: dict[str, dict[str, dict[str, int]]]

    @classmethod
    def load(cls, data: Path, documents: int | None) -> SciFact:
        """All of it, or a cut: few queries and about so many documents, the judged ones among them."""
        folder = data / "scifact"
        corpus = {
            row["_id"]: f"{row['title']} {row['text']}".strip() for row in read(folder / "corpus.jsonl")
        }
        queries, qrels = {}, {}
        for split in ("train", "test"):
            asked = {row["_id"]: row["text"] for row in read(folder / f"queries_{split}.jsonl")}
            judged: dict[str, dict[str, int]] = {}
            for line in (folder / f"qrels_{split}.tsv").read_text().splitlines()[1:]:
                query, document, grade = line.split("\t")
                judged.setdefault(query, {})[document] = int(grade)
            if documents is not None:
                judged = dict(list(judged.items())[: documents // 10])
            queries[split] = {key: asked[key] for key in judged}
            qrels[split] = judged
        if documents is not None:
            needed = {one for split in qrels.values() for grades in split.values() for one in grades}
            rest = random.Random(0).sample(sorted(corpus.keys() - needed), max(0, documents - len(needed)))
            corpus = {key: text for key, text in corpus.items() if key in needed or key in set(rest)}
        return cls(corpus, queries, qrels)

    def nearest(self, folder: Path, depth: int) -> dict[str, list[str]]:
        """The nearest documents of each test query."""
        model = encoder(folder)
        names = list(self.corpus)
        documents = model.encode(list(self.corpus.values()), normalize_embeddings=True)
        asked = model.encode(list(self.queries["test"].values()), normalize_embeddings=True)
        scores = asked @ documents.T
        return {
            query: ranked([float(s) for s in scores[i]], names)[:depth]
            for i, query in enumerate(self.queries["test"])
        }

    def score(self, rankings: dict[str, list[str]]) -> dict[str, float]:
        """Means over the test queries."""
        kept = ("ndcg@10", "mrr@10")
        found = [ranking_scores(self.qrels["test"][query], order, kept) for query, order in rankings.items()]
        return {name: statistics.fmean(one[name] for one in found) for name in kept}


def rerank(science: SciFact, first: dict[str, list[str]]) -> Callable[[Path], dict[str, float]]:
    """nDCG of the reranked candidates."""

    def judge(folder: Path) -> dict[str, float]:
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(
            str(folder), device=DEVICE, local_files_only=True, model_kwargs={"dtype": torch.float32}
        )
        rankings = {}
        for query, chosen in first.items():
            pairs = [(science.queries["test"][query], science.corpus[one]) for one in chosen]
            rankings[query] = ranked(model.predict(pairs, batch_size=64).tolist(), chosen)
        return science.score(rankings)

    return judge


def jobs(data: Path, model: Path, tiny: bool) -> list[Job]:
    """Everything that is compared."""
    most, documents = (60, 60) if tiny else (None, None)
    steps, few = (3, 64) if tiny else (0, None)
    train = [
        {"sentence1": row["sentence1"], "sentence2": row["sentence2"], "score": row["score"]}
        for row in read(data / "stsb_multi" / "train_en.jsonl")[:few]
    ]
    triplets = read(data / "snli" / "triplets_validation.jsonl")
    held, triplets = triplets[-443:][:most], triplets[:-443][:few]
    science = SciFact.load(data, documents)
    asked, judged = science.queries["train"], science.qrels["train"]
    right = {query: [one for one, g in grades.items() if g > 0] for query, grades in judged.items()}
    pairs = [
        {"query": asked[query], "positive": science.corpus[one]} for query in asked for one in right[query]
    ]
    mined = mine(
        [(asked[query], [science.corpus[one] for one in right[query]]) for query in asked],
        list(science.corpus.values()),
        ByWords,
        MiningRules(count=4, depth=50),
    )
    lists = [
        {"query": row.query, "positives": list(row.positives), "negatives": list(row.negatives)}
        for row in mined.rows
    ]
    first = science.nearest(model, 5 if tiny else 50)

    def retrieve(folder: Path) -> dict[str, float]:
        return science.score(science.nearest(folder, 100))

    def made(
        name: str, rows: list[Row], loss: str, *, batch: int, rate: float, length: int, judge: Any
    ) -> Job:
        purpose = "reranking" if name.endswith("reranking") else "similarity"
        one_epoch = max(1, len(rows) // batch)
        return Job(name, purpose, rows, loss, min(batch, len(rows)), steps or one_epoch, rate, length, judge)

    return [
        made("stsb", train, "cosent", batch=32, rate=2e-5, length=128, judge=sts(data, most)),
        made("snli", triplets, IN_BATCH, batch=64, rate=2e-5, length=128, judge=nli(data, held, most)),
        made("scifact", pairs, IN_BATCH, batch=32, rate=2e-5, length=256, judge=retrieve),
        made(
            "scifact-reranking",
            lists,
            "binary",
            batch=8,
            rate=5e-5,
            length=64 if tiny else 256,
            judge=rerank(science, first),
        ),
    ]


def ours(job: Job, model: Path, seed: int, out: Path, dtype: str) -> dict[str, float]:
    """Train with Luthier; the merged folder is out."""
    rows = out.parent / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in job.rows))
    section = {"loss": job.loss}
    recipe = Recipe.model_validate(
        {
            "task": job.purpose,
            "model": {"id": str(model), "dtype": dtype, "attention": "sdpa"},
            "method": {"name": "full"},
            "data": {
                "train": str(rows),
                "test": str(rows),
                "validation_share": 0,
                "over_length": "truncate",
            },
            "training": {
                "max_steps": job.steps,
                "learning_rate": job.rate,
                "batch_size": job.batch_size,
                "micro_batch_size": job.batch_size,
                "sequence_length": job.length,
                "schedule": "linear",
                "warmup_share": 0.1,
                "evaluate_every": 10**6,
                "checkpoint_every": 10**6,
                "select": "last",
            },
            job.purpose: section,
            "seed": seed,
        }
    )
    tokenizer = load_tokenizer(model)
    data = load_inputs(recipe, tokenizer, base=Path("/"), sequence_length=job.length)
    recipe = settle_pairs(recipe, data.splits.train, data.splits.kind)
    kind = SimilarityTask if job.purpose == "similarity" else RerankingTask
    task = kind(recipe, model, tokenizer, device=DEVICE)
    began = time.perf_counter()
    result = task.fit(data.splits, out.parent / "run", recipe_digest="b", on_metrics=lambda _: None)
    wall = time.perf_counter() - began
    task.save_merged(out)
    task.free()
    return {"seconds": wall, "step_seconds": result.seconds, "peak": result.peak_memory}


def theirs(job: Job, model: Path, seed: int, out: Path, dtype: str) -> dict[str, float]:
    """Train with sentence-transformers' own trainer; the saved folder is out."""
    from datasets import Dataset
    from sentence_transformers import CrossEncoder, SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder import losses as cross
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

    torch.manual_seed(seed)
    words: dict[str, Any] = {
        "output_dir": str(out.parent / "theirs"),
        "max_steps": job.steps,
        "learning_rate": job.rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": -(-job.steps // 10),
        "seed": seed,
        "bf16": dtype == "bfloat16",
        "use_cpu": DEVICE == "cpu",
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    load = {"device": DEVICE, "local_files_only": True, "model_kwargs": {"dtype": torch.float32}}
    if job.purpose == "reranking":
        model_ = CrossEncoder(str(model), num_labels=1, max_length=job.length, **load)
        flat = [
            {"query": row["query"], "document": text, "label": label}
            for row in job.rows
            for texts, label in ((row["positives"], 1.0), (row["negatives"], 0.0))
            for text in texts
        ]
        each = len(flat) / len(job.rows)
        arguments = CrossEncoderTrainingArguments(
            per_device_train_batch_size=round(job.batch_size * each), **words
        )
        dataset = Dataset.from_list(flat)
        trainer = CrossEncoderTrainer(
            model=model_, args=arguments, train_dataset=dataset, loss=cross.BinaryCrossEntropyLoss(model_)
        )
    else:
        model_ = SentenceTransformer(str(model), **load)
        model_.max_seq_length = job.length
        loss = (
            losses.CoSENTLoss(model_) if job.loss == "cosent" else losses.MultipleNegativesRankingLoss(model_)
        )
        arguments = SentenceTransformerTrainingArguments(
            per_device_train_batch_size=job.batch_size,
            batch_sampler="no_duplicates" if job.loss == "in-batch-negatives" else "batch_sampler",
            **words,
        )
        trainer = SentenceTransformerTrainer(
            model=model_, args=arguments, train_dataset=Dataset.from_list(job.rows), loss=loss
        )
    if DEVICE != "cpu":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    runtime = trainer.train().metrics["train_runtime"]
    if DEVICE != "cpu":
        torch.cuda.synchronize()
    wall = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() if DEVICE != "cpu" else 0
    model_.save_pretrained(str(out), create_model_card=False)
    return {"seconds": wall, "step_seconds": runtime, "peak": peak}


def main() -> None:
    """Run what is asked for and append one line a training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", nargs="+", default=None)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    found = jobs(asked.data, asked.model, asked.tiny)
    chosen = [job for job in found if asked.jobs is None or job.name in asked.jobs]
    device = torch.cuda.get_device_name() if DEVICE != "cpu" else "cpu"
    about = {"device": device, "dtype": asked.dtype, "torch": torch.__version__}
    warm = [replace(job, steps=min(job.steps, 5)) for job in chosen] if DEVICE != "cpu" else []
    for job in warm:  # kernels and libraries are loaded before anything is timed
        for arm in (ours, theirs):
            with tempfile.TemporaryDirectory() as scratch:
                arm(job, asked.model, 0, Path(scratch) / "model", asked.dtype)
    for job in chosen:
        if job.purpose == "similarity":
            write(asked.out, {**about, "job": job.name, "arm": "base", **job.judge(asked.model)})
        for turn, seed in enumerate(asked.seeds):
            arms = [("luthier", ours), ("sentence-transformers", theirs)]
            for name, arm in arms if turn % 2 == 0 else arms[::-1]:
                with tempfile.TemporaryDirectory() as scratch:
                    folder = Path(scratch) / "model"
                    figures = arm(job, asked.model, seed, folder, asked.dtype)
                    facts = {"job": job.name, "arm": name, "seed": seed, "rows": len(job.rows)}
                    facts |= {"steps": job.steps, "batch": job.batch_size, "rate": job.rate}
                    write(asked.out, {**about, **facts, **figures, **job.judge(folder)})
                    shutil.rmtree(folder, ignore_errors=True)
    print(table(asked.out))


def write(out: Path, line: Row) -> None:
    """Append one result and show it."""
    with out.open("a") as lines:
        lines.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def table(out: Path) -> str:
    """Mean and spread over seeds of each figure, side by side."""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    lines = [
        "| job | figure | base | Luthier | sentence-transformers | difference |",
        "|---|---|---|---|---|---|",
    ]
    skipped = {"seed", "rows", "steps", "batch", "rate"}
    for job in dict.fromkeys(row["job"] for row in rows):
        mine = [row for row in rows if row["job"] == job]
        figures = [k for k, v in mine[-1].items() if isinstance(v, float) and k not in skipped]
        for figure in figures:
            by = {
                arm: [r[figure] for r in mine if r["arm"] == arm and figure in r] for arm in ("base", *ARMS)
            }
            if not by[ARMS[0]] or not by[ARMS[1]]:
                continue
            cells = [
                f"{statistics.fmean(v):.4g} ± {statistics.pstdev(v):.2g}" if v else "" for v in by.values()
            ]
            gap = statistics.fmean(by[ARMS[0]]) - statistics.fmean(by[ARMS[1]])
            lines.append(f"| {job} | {figure} | {' | '.join(cells)} | {gap:+.4g} |")
    return "\n".join(lines)


ARMS = ("luthier", "sentence-transformers")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if __name__ == "__main__":
    main()
