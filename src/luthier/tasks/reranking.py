"""Tune a cross-encoder: the score of a query and a document that are read together.

Judged by the order in which it puts the candidates of each query; pairs that stand alone by the
correlation with their scores. An untrained head says nothing: its floor is the order by words (BM25).
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from luthier.data.inputs import pairs_of
from luthier.data.mine import ByWords
from luthier.data.rows import retrieval_of
from luthier.evaluation.retrieval import (
    CORRELATION_METRICS,
    RANKING_METRICS,
    RERANKING,
    check_metrics,
    correlation_result,
    ranked,
    ranking_result,
)
from luthier.models.load import quiet
from luthier.models.lora import adapters_off
from luthier.models.rerank import (
    Pair,
    TorchReranker,
    load_reranker,
    read_rerank_settings,
    write_rerank_settings,
)
from luthier.schema.protocols import Progress, Splits
from luthier.schema.recipe import RerankingChoice
from luthier.schema.results import EvalResult, ParityCheck
from luthier.schema.rows import PairRow, RetrievalSet
from luthier.tasks.base import ModelTask, Rows, Told
from luthier.tasks.encoded import reads_segments
from luthier.tasks.lists import (
    ListBatches,
    PairReader,
    RankingObjective,
    candidates_of,
    with_tokens,
)
from luthier.training.objective import MicroBatch, Objective
from luthier.training.source import BatchSource

FLOOR = "floor: words (BM25)"
SAME_SCORES = {"float32": 1e-4, "bfloat16": 3e-2}
"""How far scores may differ after reading the saved folder, as a share of the largest."""
_FEWEST = 2
"""From so many documents a query (in the mean) on, scored pairs are judged as lists."""


@dataclass(frozen=True)
class Asked:
    """A test split as a reranker gets it: the candidates of each query, and what they are worth."""

    queries: Mapping[str, str]
    documents: Mapping[str, str]
    relevance: Mapping[str, Mapping[str, Any]]
    candidates: Mapping[str, Sequence[str]]
    how: str
    """Where the candidates came from, in words."""

    @property
    def pairs(self) -> list[Pair]:
        return [
            (self.queries[query], self.documents[one])
            for query, chosen in self.candidates.items()
            for one in chosen
        ]


class RerankingTask(ModelTask):
    """A cross-encoder from its own scores, or from none, to tuned ones."""

    task_type = "SEQ_CLS"

    def prepare(self) -> None:
        choice = self.choice = self.recipe.reranking or RerankingChoice()
        settings = read_rerank_settings(self.directory, form=choice.form)
        if choice.instruction is not None:
            settings = replace(settings, instruction=choice.instruction)
        if choice.loss in ("mse", "margin-mse") and settings.form == "classification":
            settings = replace(settings, activation="identity")
        limits = [settings.max_length, self.tokenizer.max_length]
        longest = min((one for one in limits if one), default=None)
        self.settings = replace(with_tokens(settings, self.tokenizer), max_length=longest)
        if settings.form == "yes-no":
            self.task_type = "CAUSAL_LM"  # type: ignore[misc]
        self.fresh: tuple[str, ...] = ()

    def load_model(self) -> Any:
        choice = self.recipe.model
        assert choice.dtype is not None
        model, self.fresh = load_reranker(
            self.directory,
            self.settings,
            dtype=choice.dtype,
            pad_id=self.tokenizer.pad_id,
            seed=self.recipe.seed,
            device=self.device,
            attention=choice.attention,
            trust_remote_code=choice.trust_remote_code,
        )
        segments = reads_segments(model, self.tokenizer)
        self.reader = PairReader(
            self.tokenizer, self.settings, segments, self.device, self.settings.max_length
        )
        return model.requires_grad_(False)

    def fresh_modules(self) -> tuple[str, ...]:
        return self.fresh

    def objective(self) -> Objective:
        return RankingObjective(self.settings, self.choice)

    # -- batches -----------------------------------------------------------------------------

    def source(self, splits: Splits) -> BatchSource:
        return self._batches(splits.train)

    def held_out(self, splits: Splits) -> Sequence[MicroBatch]:
        return self._batches(splits.validation).in_order() if splits.validation else []

    def _batches(self, rows: Sequence[Any]) -> ListBatches:
        training = self.recipe.training
        assert training.batch_size is not None
        assert training.micro_batch_size is not None
        lists = candidates_of(rows, self.choice)
        # As many pairs as the planned micro-batch of rows has; scored pairs are a row each.
        scored = bool(rows) and isinstance(rows[0], PairRow)
        each = 1 if scored else -(-sum(len(one.pairs) for one in lists) // max(1, len(lists)))
        return ListBatches(
            lists,
            self.reader,
            batch_size=training.batch_size,
            pairs_at_once=training.micro_batch_size * each,
            seed=self.recipe.seed,
            most=training.sequence_length,
        )

    # -- judging -----------------------------------------------------------------------------

    def judge_base(
        self, splits: Splits, rows: Rows, *, told: Told, cache_dir: Path | None = None
    ) -> dict[str, EvalResult]:
        del cache_dir
        if not self.settings.has_head:
            return {name: self._judge(None, name, part, splits, told) for name, part in rows.items()}
        self.ensure_base()
        base = self._reranker("base", self.base_digest, lambda: adapters_off(self.model))
        return {name: self._judge(base, name, part, splits, told) for name, part in rows.items()}

    def judge_tuned(
        self, run_directory: Path, rows: Rows, *, told: Told, cache_dir: Path | None = None
    ) -> dict[str, EvalResult]:
        del cache_dir
        tuned = self.tuned_reranker(run_directory)
        return {name: self._judge(tuned, name, part, self.splits, told) for name, part in rows.items()}

    def tuned_reranker(self, run_directory: Path) -> TorchReranker:
        """Scores of the trained model."""
        self.load_trained(run_directory)
        assert self.trained_digest is not None
        return self._reranker("tuned", self.trained_digest, nullcontext)

    def _reranker(
        self, label: str, digest: str, scope: Callable[[], AbstractContextManager[None]]
    ) -> TorchReranker:
        return TorchReranker(
            self.model, self.settings, self.reader.batches(), label=label, weights_digest=digest, scope=scope
        )

    def _judge(
        self, scorer: TorchReranker | None, split: str, rows: Sequence[Any], splits: Splits | None, told: Told
    ) -> EvalResult:
        """One split, by the model or (None) by words."""
        began = time.perf_counter()
        words = {
            "split": split,
            "model": FLOOR if scorer is None else scorer.label,
            "weights_digest": "" if scorer is None else scorer.weights_digest,
        }
        progress = told(f"{words['model']} on {split}")
        asked = self.recipe.evaluation.metrics
        if isinstance(rows[0], PairRow) and len(rows) < _FEWEST * len({row.first for row in rows}):
            metrics = check_metrics(asked, tuple(CORRELATION_METRICS), CORRELATION_METRICS)
            scores = score_pairs(scorer, [pair for row in rows for pair in pairs_of(row)], progress)
            found = correlation_result(
                rows, scores, metrics=metrics, reason=f"{len(rows)} pairs have a score", seconds=0.0, **words
            )
            return found.model_copy(update={"seconds": time.perf_counter() - began})
        metrics = check_metrics(asked, RERANKING, RANKING_METRICS)
        held = None if splits is None else splits.retrieval.get(split)
        given = asked_of(rows, held, self.choice.candidates)
        scores = score_pairs(scorer, given.pairs, progress)
        return ranking_result(
            ordered(given, scores),
            queries=given.queries,
            documents=given.documents,
            relevance=given.relevance,
            metrics=metrics,
            seconds=time.perf_counter() - began,
            settings={"candidates": given.how},
            reason=f"{len(given.candidates)} queries, reranked over {given.how}",
            **words,
        )

    # -- what is saved -----------------------------------------------------------------------

    def save_extra(self, directory: Path) -> None:
        """What sentence-transformers reads to give the same scores."""
        write_rerank_settings(directory, self.settings)

    def check_saved(self, directory: Path, rows: Sequence[Any]) -> ParityCheck | None:
        """Scores of the folder, read by sentence-transformers where it is there, against the model's own."""
        pairs = list(dict.fromkeys(pair for row in rows for pair in pairs_of(row)))
        if not pairs:
            return None
        assert self.trained_digest is not None
        mine = self._reranker("tuned", self.trained_digest, nullcontext).score(pairs)
        theirs, by = self._read_back(directory, pairs)
        scale = max(1.0, float(np.abs(mine).max()))
        allowed = SAME_SCORES[self.recipe.model.dtype or "float32"] * scale
        worst = float(np.abs(mine - theirs).max())
        problems = [f"{by} gives scores that differ by up to {worst:.2g}"] if worst > allowed else []
        return ParityCheck(
            prompts=len(pairs),
            equal_token_ids=len(pairs),
            compared_tokens=len(pairs),
            equal_tokens=int((np.abs(mine - theirs) <= allowed).sum()),
            near_ties=0,
            stops=True,
            passed=not problems,
            problems=tuple(problems),
            largest_difference=worst,
        )

    def _read_back(self, directory: Path, pairs: Sequence[Pair]) -> tuple[Any, str]:
        if importlib.util.find_spec("sentence_transformers") is not None:
            with quiet():
                from sentence_transformers import CrossEncoder

                model = CrossEncoder(str(directory), device=str(self.device), local_files_only=True)
                return np.asarray(model.predict(list(pairs), show_progress_bar=False)), "CrossEncoder"
        dtype = self.recipe.model.dtype or "float32"
        own = load_saved_reranker(directory, self.tokenizer, dtype=dtype, device=str(self.device))
        return own.score(pairs), "the saved folder"


def load_saved_reranker(
    folder: Path, tokenizer: Any, *, dtype: Any = "float32", device: str = "cpu", label: str = ""
) -> TorchReranker:
    """A saved cross-encoder, tuned or not, ready to score. Raises UsageError where its head says nothing."""
    from luthier.errors import UsageError
    from luthier.models.load import weights_digest

    settings = with_tokens(read_rerank_settings(folder), tokenizer)
    if not settings.has_head:
        raise UsageError(
            "this model has no head that scores pairs: its scores would be random",
            file=folder,
            hint="tune it first (task: reranking), or give a cross-encoder",
        )
    model, _ = load_reranker(folder, settings, dtype=dtype, pad_id=tokenizer.pad_id, device=device)
    limits = [settings.max_length, tokenizer.max_length]
    longest = min((one for one in limits if one), default=None)
    reader = PairReader(tokenizer, settings, reads_segments(model, tokenizer), torch.device(device), longest)
    return TorchReranker(
        model, settings, reader.batches(), label=label or folder.name, weights_digest=weights_digest(folder)
    )


def score_pairs(scorer: TorchReranker | None, pairs: Sequence[Pair], progress: Progress | None) -> Any:
    """Scores by a model, or by words where there is none: [pairs]."""
    if scorer is not None:
        return scorer.score(pairs, progress=progress)
    queries = list(dict.fromkeys(query for query, _ in pairs))
    documents = list(dict.fromkeys(document for _, document in pairs))
    query_at = {text: i for i, text in enumerate(queries)}
    document_at = {text: i for i, text in enumerate(documents)}
    search = ByWords(queries, documents)
    wanted: dict[int, list[int]] = {}
    for place, (query, _) in enumerate(pairs):
        wanted.setdefault(query_at[query], []).append(place)
    found = np.zeros(len(pairs))
    for index, places in wanted.items():
        scores = search.scores(index)
        found[places] = [scores[document_at[pairs[place][1]]] for place in places]
    return found


def ordered(asked: Asked, scores: Any) -> dict[str, list[str]]:
    """The candidates of each query by falling score."""
    found, start = {}, 0
    for query, chosen in asked.candidates.items():
        found[query] = ranked([float(s) for s in scores[start : start + len(chosen)]], list(chosen))
        start += len(chosen)
    return found


def asked_of(rows: Sequence[Any], held: RetrievalSet | None, most: int) -> Asked:
    """Candidates of each query: the texts that its rows judge, else the nearest of the corpus by words."""
    if isinstance(rows[0], PairRow):
        return _scored(rows)
    whole = held or retrieval_of(rows)
    assert whole is not None, "rows without a score are queries with texts"
    texts = {row.query for row in rows}
    queries = {key: text for key, text in whole.queries.items() if text in texts}
    relevance = {key: whole.relevance.get(key, {}) for key in queries}
    if all(len(row.negatives) for row in rows):
        chosen = {key: list(grades) for key, grades in relevance.items()}
        return Asked(queries, whole.corpus, relevance, chosen, "the texts of each row")
    names = list(whole.corpus)
    indices, _ = ByWords(list(queries.values()), list(whole.corpus.values())).top(most)
    chosen = {
        key: [names[place] for place in indices[i].tolist() if place >= 0] for i, key in enumerate(queries)
    }
    how = f"the first {most} of {len(names)} texts by words (BM25)"
    return Asked(queries, whole.corpus, relevance, chosen, how)


def _scored(rows: Sequence[Any]) -> Asked:
    """Scored pairs as queries with graded candidates."""
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    relevance: dict[str, dict[str, float]] = {}
    query_at: dict[str, str] = {}
    document_at: dict[str, str] = {}
    for row in cast("Sequence[PairRow]", rows):
        query = query_at.setdefault(row.first, f"q{len(query_at)}")
        document = document_at.setdefault(row.second, f"d{len(document_at)}")
        queries[query], documents[document] = row.first, row.second
        relevance.setdefault(query, {})[document] = row.score
    chosen = {query: list(grades) for query, grades in relevance.items()}
    return Asked(queries, documents, relevance, chosen, "the scored texts of each query")
