"""Tune a bi-encoder: texts that belong together get near vectors.

Rows with a score train on their pairs; queries with right (and wrong) texts train on telling these
apart among all texts of the batch; texts with a label train on being nearer to those of their class.
Judged by correlation with the scores, or by retrieval.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.data.inputs import texts_with_roles
from luthier.data.mine import nearest
from luthier.data.rows import alike_of, retrieval_of
from luthier.errors import DataError
from luthier.evaluation.retrieval import (
    CORRELATION_METRICS,
    RANKING_METRICS,
    RETRIEVAL,
    check_metrics,
    correlation_result,
    ranked,
    ranking_result,
)
from luthier.models.embed import UNUSED, DenseLayers, TorchEmbedder, has_segments, load_backbone
from luthier.models.load import quiet
from luthier.models.lora import adapter_paths, adapters_off
from luthier.models.vector_settings import write_vector_settings
from luthier.schema.protocols import Progress, Splits
from luthier.schema.recipe import Dtype, Lora, SimilarityChoice
from luthier.schema.results import EvalResult, ParityCheck
from luthier.schema.rows import LabelRow, PairRow, RetrievalSet
from luthier.tasks.base import TOKENIZER_FILES, ModelTask, Rows, Told
from luthier.tasks.texts import TextBatches, Texts, VectorObjective, texts_of
from luthier.tasks.vectors import Reader, check_dimensions, embedder_of, load_embedder, settings_of
from luthier.training.objective import MicroBatch, Objective
from luthier.training.source import BatchSource

if TYPE_CHECKING:
    import torch

DEPTH = 100
"""Documents of a corpus that are ranked for each query."""
SAME_VECTORS = {"float32": 1e-4, "bfloat16": 3e-2}
"""How far numbers of a vector may differ after reading the saved folder, as a share of the largest."""


class SimilarityTask(ModelTask):
    """A bi-encoder from its own vectors to tuned ones."""

    task_type = "FEATURE_EXTRACTION"

    def prepare(self) -> None:
        self.choice = self.recipe.similarity or SimilarityChoice()
        self.settings = settings_of(self.directory, self.recipe.model.id, self.choice)
        self.dense: DenseLayers | None = None

    def load_model(self) -> Any:
        choice = self.recipe.model
        assert choice.dtype is not None
        model = load_backbone(
            self.directory,
            dtype=choice.dtype,
            device=self.device,
            attention=choice.attention,
            trust_remote_code=choice.trust_remote_code,
        )
        if self.settings.dense:
            self.dense = DenseLayers(self.settings.dense, self.directory).to(self.device)
        self.dimensions = check_dimensions(self.choice.dimensions, self.settings, model)
        self.reader = Reader(self.tokenizer, self.settings, has_segments(model), self.device)
        return model.requires_grad_(False)

    def adapted_modules(self) -> frozenset[str] | None:
        """All that the method names but the pooler: no vector comes from it, so it would never learn."""
        method = self.recipe.method
        assert isinstance(method, Lora)
        return frozenset(p for p in adapter_paths(self.model, method) if not p.startswith(UNUSED))

    def objective(self) -> Objective:
        return VectorObjective(self.settings, self.dense, self.choice, self.dimensions)

    # -- batches -----------------------------------------------------------------------------

    def source(self, splits: Splits) -> BatchSource:
        return self._batches(splits.train, self.recipe.training.batch_size)

    def held_out(self, splits: Splits) -> Sequence[MicroBatch]:
        """Validation in batches of the training's size, for losses that can be compared with it."""
        if not splits.validation:
            return []
        source = self._batches(splits.validation, self.recipe.training.batch_size)
        return [source.batch(chosen) for chosen in source.plan(0)]

    def _batches(self, rows: Sequence[Any], batch_size: int | None) -> TextBatches:
        training = self.recipe.training
        assert batch_size is not None
        assert training.micro_batch_size is not None
        texts, found = texts_of(rows, self.settings, self.choice)
        each = -(-sum(len({row.left, row.right}) + self._taken(row) for row in found) // max(1, len(found)))
        return TextBatches(
            found,
            self.reader.encode(texts, most=training.sequence_length),
            texts,
            self.reader,
            batch_size=batch_size,
            texts_at_once=training.micro_batch_size * each,
            seed=self.recipe.seed,
            apart=self.choice.loss == "in-batch-negatives",
            alike=self.choice.loss == "batch-all-triplet",
            most_wrong=self.choice.negatives,
        )

    def _taken(self, row: Texts) -> int:
        return len(row.wrong) if self.choice.negatives is None else min(len(row.wrong), self.choice.negatives)

    # -- judging -----------------------------------------------------------------------------

    def judge_base(
        self, splits: Splits, rows: Rows, *, told: Told, cache_dir: Path | None = None
    ) -> dict[str, EvalResult]:
        del cache_dir
        self.ensure_base()
        base = self._embedder("base", self.base_digest, lambda: adapters_off(self.model))
        return {name: self._judge(base, name, part, splits, told) for name, part in rows.items()}

    def judge_tuned(
        self, run_directory: Path, rows: Rows, *, told: Told, cache_dir: Path | None = None
    ) -> dict[str, EvalResult]:
        del cache_dir
        tuned = self.tuned_embedder(run_directory)
        return {name: self._judge(tuned, name, part, self.splits, told) for name, part in rows.items()}

    def tuned_embedder(self, run_directory: Path) -> TorchEmbedder:
        """Vectors of the trained model."""
        self.load_trained(run_directory)
        assert self.trained_digest is not None
        return self._embedder("tuned", self.trained_digest, nullcontext)

    def judge_with(self, embedder: Any, split: str, rows: Sequence[Any], *, told: Told) -> EvalResult:
        """One split judged with another maker of vectors: ``encode(texts, role=, progress=)``."""
        return self._judge(embedder, split, rows, self.splits, told)

    def _embedder(
        self, label: str, digest: str, scope: Callable[[], AbstractContextManager[None]]
    ) -> TorchEmbedder:
        return embedder_of(
            self.model, self.reader, label=label, weights_digest=digest, dense=self.dense, scope=scope
        )

    def _judge(
        self, embedder: TorchEmbedder, split: str, rows: Sequence[Any], splits: Splits | None, told: Told
    ) -> EvalResult:
        """One split: correlation where pairs are scored, else retrieval."""
        words = {"split": split, "model": embedder.label, "weights_digest": embedder.weights_digest}
        progress = told(f"{embedder.label} on {split}")
        asked = self.recipe.evaluation.metrics
        began = time.perf_counter()
        if isinstance(rows[0], PairRow):
            metrics = check_metrics(asked, tuple(CORRELATION_METRICS), CORRELATION_METRICS)
            vectors = embedder.encode(
                [text for row in rows for text, _ in texts_with_roles(row)],
                role="similarity",
                progress=progress,
            )
            return correlation_result(
                rows,
                cosines(vectors[0::2], vectors[1::2]),
                metrics=metrics,
                seconds=time.perf_counter() - began,
                settings={"prompt": self.settings.prompt("similarity")},
                reason=f"{len(rows)} pairs have a score",
                **words,
            )
        metrics = check_metrics(asked, RETRIEVAL, RANKING_METRICS)
        whole = asked_of(rows, None if splits is None else splits.retrieval.get(split))
        rankings = retrieve(embedder, whole, progress=progress)
        return ranking_result(
            rankings,
            queries=whole.queries,
            documents=whole.corpus,
            relevance=whole.relevance,
            metrics=metrics,
            seconds=time.perf_counter() - began,
            settings={"corpus": len(whole.corpus), "depth": DEPTH},
            reason=f"{len(whole.queries)} queries have relevant texts among {len(whole.corpus)}",
            **words,
        )

    # -- what is saved -----------------------------------------------------------------------

    def save_adapter(self, directory: Path) -> Path:
        """The adapter in PEFT's format, with what makes the folder a sentence-transformers model."""
        super().save_adapter(directory)
        copy_tokenizer(self.directory, directory)
        self.save_extra(directory)
        return directory

    def save_extra(self, directory: Path) -> None:
        """Pooling, prompts and the longest text, as sentence-transformers reads them."""
        assert self.model is not None
        width = int(self.model.config.get_text_config().hidden_size)
        lengths = [n for n in (self.settings.max_length, self.recipe.training.sequence_length) if n]
        settings = replace(self.settings, max_length=max(lengths, default=None))
        write_vector_settings(directory, settings, base=self.directory, width=width)

    def check_saved(self, directory: Path, rows: Sequence[Any]) -> ParityCheck | None:
        """Vectors of the folder, read by sentence-transformers where it is there, against the model's own."""
        texts = list(dict.fromkeys(text for row in rows for text, _ in texts_with_roles(row)))
        if not texts:
            return None
        assert self.trained_digest is not None
        mine = self._embedder("tuned", self.trained_digest, nullcontext).encode(texts)
        theirs, by = read_back(directory, texts, self.tokenizer, device=self.device)
        scale = max(1.0, float(np.abs(mine).max()))
        worst = float(np.abs(mine - theirs).max()) if mine.shape == theirs.shape else float("inf")
        allowed = SAME_VECTORS[self.recipe.model.dtype or "float32"] * scale
        close = int((np.abs(mine - theirs).max(axis=1) <= allowed).sum()) if worst < float("inf") else 0
        problems = [f"{by} gives vectors that differ by up to {worst:.2g}"] if worst > allowed else []
        return ParityCheck(
            prompts=len(texts),
            equal_token_ids=len(texts),
            compared_tokens=len(texts),
            equal_tokens=close,
            near_ties=0,
            stops=True,
            passed=not problems,
            problems=tuple(problems),
            largest_difference=worst,
        )


def read_back(
    directory: Path, texts: Sequence[str], tokenizer: Any, *, device: torch.device
) -> tuple[Any, str]:
    """Vectors of a saved folder as others compute them, and who did: sentence-transformers where it is."""
    if importlib.util.find_spec("sentence_transformers") is not None:
        with quiet():
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(str(directory), device=str(device), local_files_only=True)
            return np.asarray(model.encode(list(texts), show_progress_bar=False)), "sentence-transformers"
    dtype: Dtype = "bfloat16" if "bfloat16" in (directory / "config.json").read_text() else "float32"
    own = load_embedder(directory, tokenizer, model_id=directory.name, dtype=dtype, device=str(device))
    return own.encode(texts), "the saved folder"


def copy_tokenizer(base: Path, directory: Path) -> None:
    """The base's tokenizer files beside other weights, byte for byte."""
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, directory / name)


def cosines(left: Any, right: Any) -> Any:
    """Cosine of each row with its counterpart: [rows]."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.einsum("rd,rd->r", left, right) / np.maximum(norms, 1e-12)


def asked_of(rows: Sequence[Any], held: RetrievalSet | None) -> RetrievalSet:
    """The queries of these rows and the corpus that they are answered from."""
    labelled = isinstance(rows[0], LabelRow)
    if held is None:
        made = alike_of(rows) if labelled else retrieval_of(rows)
        if made is None:
            raise DataError(
                "no two held-out texts have the same label, so none has another to be found",
                file=rows[0].file,
                line=rows[0].line,
                hint="hold out more rows: a larger data.test_share, or a file with several rows a label",
            )
        return made
    asked = {row.text if labelled else row.query for row in rows}
    queries = {key: text for key, text in held.queries.items() if text in asked}
    return replace(held, queries=queries)


def retrieve(
    embedder: TorchEmbedder, held: RetrievalSet, *, depth: int = DEPTH, progress: Progress | None = None
) -> dict[str, list[str]]:
    """The nearest documents of every query by cosine, best first."""
    names = list(held.corpus)
    texts = list(held.corpus.values())
    if held.among:
        corpus = embedder.encode(texts, role="similarity", progress=progress)
        place = {name: i for i, name in enumerate(names)}
        queries = corpus[[place[query] for query in held.queries]]
        depth += 1  # each finds itself too
    else:
        corpus = embedder.encode(texts, role="document", progress=progress)
        queries = embedder.encode(list(held.queries.values()), role="query")
    indices, scores = nearest(queries, corpus, depth)
    found = {
        query: ranked([float(s) for s in scores[i]], [names[j] for j in indices[i]])
        for i, query in enumerate(held.queries)
    }
    if not held.among:
        return found
    return {query: [name for name in order if name != query][: depth - 1] for query, order in found.items()}
