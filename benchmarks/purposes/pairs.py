"""Embedders and rerankers trained by Luthier and by sentence-transformers' own trainers; see ``run.py``.

Both results are loaded by sentence-transformers and judged by the same code.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import DEVICE, Job, Pace, Row, clock, fitted, read, trainer_words, training_words

from luthier.data.inputs import load_inputs
from luthier.data.mine import ByWords, MiningRules, mine
from luthier.data.tokenizer import load_tokenizer
from luthier.evaluation.retrieval import correlation, ranked, ranking_scores
from luthier.planning.pairs import settle_pairs
from luthier.schema.recipe import Recipe
from luthier.tasks.reranking import RerankingTask
from luthier.tasks.similarity import SimilarityTask

IN_BATCH = "in-batch-negatives"


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


def by_words(science: SciFact, queries: int, depth: int) -> dict[str, list[str]]:
    """The first documents by words (BM25) of the first test queries."""
    names, asked = list(science.corpus), list(science.queries["test"])[:queries]
    texts = [science.queries["test"][query] for query in asked]
    places, _ = ByWords(texts, list(science.corpus.values())).top(depth)
    return {
        query: [names[place] for place in places[i].tolist() if place >= 0] for i, query in enumerate(asked)
    }


def rerank(science: SciFact, first: dict[str, list[str]], length: int) -> Callable[[Path], dict[str, float]]:
    """nDCG of the reranked candidates, every model reading as many tokens of a pair as it was trained on."""

    def judge(folder: Path) -> dict[str, float]:
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(
            str(folder), device=DEVICE, local_files_only=True, model_kwargs={"dtype": torch.float32}
        )
        model.max_seq_length = length
        pairs = [
            (science.queries["test"][query], science.corpus[one]) for query in first for one in first[query]
        ]
        scores = iter(model.predict(pairs, batch_size=128).tolist())
        return science.score(
            {query: ranked([next(scores) for _ in chosen], chosen) for query, chosen in first.items()}
        )

    return judge


def jobs(data: Path, model: Path, tiny: bool, short: bool = False) -> list[Job]:
    """Everything that is compared; short: the one job that a processor has done in minutes."""
    most, documents = (60, 60) if tiny else (None, None)
    steps, few = (3, 64) if tiny else (0, None)
    cut = 64 if tiny else 256
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
    if short:
        judge = rerank(science, by_words(science, 80, 20), 48)
        return [Job("scifact-reranking, short", "reranking", lists, "binary", 4, 320, 1e-4, 48, judge)]
    first = science.nearest(model, 5 if tiny else 50)

    def retrieve(folder: Path) -> dict[str, float]:
        return science.score(science.nearest(folder, 100))

    reordered = rerank(science, first, cut)

    def made(
        name: str, rows: list[Row], loss: str, *, batch: int, rate: float, length: int, judge: Any
    ) -> Job:
        purpose = "reranking" if name.endswith("reranking") else "similarity"
        taken = steps or (400 if purpose == "reranking" else max(1, len(rows) // batch))
        at_once, vectors = min(batch, len(rows)), purpose == "similarity"
        return Job(name, purpose, rows, loss, at_once, taken, rate, length, judge, judges_base=vectors)

    return [
        made("stsb", train, "cosent", batch=32, rate=2e-5, length=128, judge=sts(data, most)),
        made("snli", triplets, IN_BATCH, batch=64, rate=2e-5, length=128, judge=nli(data, held, most)),
        made("scifact", pairs, IN_BATCH, batch=32, rate=2e-5, length=256, judge=retrieve),
        made(
            "scifact-reranking",
            lists,
            "binary",
            batch=8,
            rate=1e-4,
            length=cut,
            judge=reordered,
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
            "training": training_words(job),
            job.purpose: section,
            "seed": seed,
        }
    )
    tokenizer = load_tokenizer(model)
    data = load_inputs(recipe, tokenizer, base=Path("/"), sequence_length=job.length)
    recipe = settle_pairs(recipe, data.splits.train, data.splits.kind)
    kind = SimilarityTask if job.purpose == "similarity" else RerankingTask
    return fitted(lambda: kind(recipe, model, tokenizer, device=DEVICE), data.splits, out, job)


def theirs(job: Job, model: Path, seed: int, out: Path, dtype: str) -> dict[str, float]:
    """Train with sentence-transformers' own trainer; the saved folder is out."""
    from datasets import Dataset
    from sentence_transformers import CrossEncoder, SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder import losses as cross
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

    torch.manual_seed(seed)
    words = trainer_words(job, seed, out, dtype)
    load = {"device": DEVICE, "local_files_only": True, "model_kwargs": {"dtype": torch.float32}}
    pace = Pace()
    with clock() as took:
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
                model=model_,
                args=arguments,
                train_dataset=dataset,
                loss=cross.BinaryCrossEntropyLoss(model_),
                callbacks=[pace.listener(job.steps)],
            )
        else:
            model_ = SentenceTransformer(str(model), **load)
            model_.max_seq_length = job.length
            kind = losses.CoSENTLoss if job.loss == "cosent" else losses.MultipleNegativesRankingLoss
            arguments = SentenceTransformerTrainingArguments(
                per_device_train_batch_size=job.batch_size,
                batch_sampler="no_duplicates" if job.loss == "in-batch-negatives" else "batch_sampler",
                **words,
            )
            trainer = SentenceTransformerTrainer(
                model=model_,
                args=arguments,
                train_dataset=Dataset.from_list(job.rows),
                loss=kind(model_),
                callbacks=[pace.listener(job.steps)],
            )
        began = time.perf_counter()
        trainer.train()
        trained = time.perf_counter() - began
    model_.save_pretrained(str(out), create_model_card=False)
    return {**took, "train_seconds": trained, **pace.rows(job.batch_size)}
