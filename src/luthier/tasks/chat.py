"""Tune a causal language model on conversations or texts: one model from baseline to merged weights.

The base weights are loaded once. The same model answers as the base (adapters off, or before
training), is trained, answers as tuned, and is merged last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.evaluation.generation import evaluate
from luthier.models.generate import TorchGenerator
from luthier.models.importance import input_importance
from luthier.models.load import load_causal
from luthier.models.lora import adapters_off
from luthier.models.packed import packing_of
from luthier.schema.protocols import Generator, Progress, Splits
from luthier.schema.recipe import QLora
from luthier.schema.results import EvalResult
from luthier.schema.rows import PairTokens
from luthier.tasks.base import ModelTask, Rows, Told
from luthier.tasks.batches import RowBatches, validation_batches
from luthier.tasks.causal import causal_objective
from luthier.tasks.glimpses import Glimpses
from luthier.training.events import Metrics
from luthier.training.objective import MicroBatch, Objective
from luthier.training.world import World

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMPORTANCE_ROWS, IMPORTANCE_TOKENS = 128, 512
"""How much of the training rows an importance matrix is taken from, at most."""


class ChatTask(ModelTask):
    """Conversations: cross-entropy of the assistant's tokens, judged by greedy answers."""

    merges_files = True

    def load_model(self) -> Any:
        choice, method = self.recipe.model, self.recipe.method
        assert choice.dtype is not None
        return load_causal(
            self.directory,
            dtype=choice.dtype,
            device=self.home,
            attention=choice.attention,
            trust_remote_code=choice.trust_remote_code,
            four_bit=method if isinstance(method, QLora) and self.packs_on_reading() else None,
        )

    def listening(
        self, splits: Splits, told: Callable[[Metrics], None], world: World
    ) -> Callable[[Metrics], None]:
        """A few held-out prompts are answered at each evaluation (see `tasks.glimpses`)."""
        if world.size > 1 or self.recipe.training.compile:
            return told
        most = self.recipe.evaluation.max_new_tokens
        return Glimpses(self.model, self.tokenizer, splits.validation, told, most=most)

    def objective(self) -> Objective:
        choice = self.recipe.training
        return causal_objective(self.model, compiled=bool(choice.compile), longest=choice.sequence_length)

    def source(self, splits: Splits) -> RowBatches:
        choice = self.recipe.training
        assert choice.batch_size is not None
        assert choice.micro_batch_size is not None
        assert choice.sequence_length is not None
        return RowBatches(
            splits.train,
            batch_size=choice.batch_size,
            micro_batch_size=choice.micro_batch_size,
            sequence_length=choice.sequence_length,
            packing=bool(self.recipe.data.packing),
            seed=self.recipe.seed,
            pad_id=self.tokenizer.pad_id,
        )

    def held_out(self, splits: Splits) -> Sequence[MicroBatch]:
        choice = self.recipe.training
        assert choice.micro_batch_size is not None
        assert choice.sequence_length is not None
        return validation_batches(
            splits.validation,
            micro_batch_size=choice.micro_batch_size,
            sequence_length=choice.sequence_length,
            pad_id=self.tokenizer.pad_id,
        )

    def importance(
        self, run_directory: Path, splits: Splits, *, progress: Progress | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Path of each linear layer -> mean square of its inputs [in], over training rows chosen by the seed.

        Taken on the trained model, on up to IMPORTANCE_ROWS rows of up to IMPORTANCE_TOKENS tokens each.
        """
        self.load_trained(run_directory)
        draw = np.random.default_rng(self.recipe.seed)
        places = draw.permutation(len(splits.train))[:IMPORTANCE_ROWS]
        rows = [splits.train[int(place)] for place in sorted(places)]
        rows = [row.chosen if isinstance(row, PairTokens) else row for row in rows]
        ids = [row.ids[:IMPORTANCE_TOKENS].tolist() for row in rows]
        found = input_importance(self.model, ids, progress=progress)
        return {path: values.numpy() for path, values in found.items()}

    def judge_base(
        self, splits: Splits, rows: Rows, *, told: Told, cache_dir: Path | None = None
    ) -> dict[str, EvalResult]:
        """Greedy answers of the untouched model, scored by the recipe's metrics."""
        del splits
        return self._judge(self.base_generator(), rows, told, cache_dir)

    def judge_tuned(
        self, run_directory: Path, rows: Rows, *, told: Told, cache_dir: Path | None = None
    ) -> dict[str, EvalResult]:
        """Greedy answers of the trained model, scored in the same way."""
        return self._judge(self.tuned_generator(run_directory), rows, told, cache_dir)

    def answer_metrics(self) -> tuple[str, ...] | None:
        """Metrics of greedy answers; None chooses them by the expected ones."""
        return self.recipe.evaluation.metrics

    def _judge(
        self, generator: Generator, rows: Rows, told: Told, cache_dir: Path | None
    ) -> dict[str, EvalResult]:
        choice = self.recipe.evaluation
        return {
            name: evaluate(
                generator,
                chats,
                split=name,
                metrics=self.answer_metrics(),
                max_new_tokens=choice.max_new_tokens,
                progress=told(f"{generator.label} on {name}"),
                cache_dir=cache_dir,
            )
            for name, chats in rows.items()
        }

    def base_generator(self) -> TorchGenerator:
        """Answers of the untouched model. Weights that were overwritten are read again."""
        self.ensure_base()
        return self._generator("base", self.base_digest, lambda: adapters_off(self.model))

    def tuned_generator(self, run_directory: Path) -> TorchGenerator:
        """Answers of the trained model (merged or with its adapter, which are equal)."""
        self.load_trained(run_directory)
        assert self.trained_digest is not None
        return self._generator("tuned", self.trained_digest, nullcontext)

    def _generator(
        self, label: str, digest: str, scope: Callable[[], AbstractContextManager[None]]
    ) -> TorchGenerator:
        # Answers are kept by this name: the same weights in another type, or asked through another
        # template, may answer otherwise.
        packed = packing_of(self.model)
        asked = f"{digest}\n{self.recipe.model.dtype}\n{getattr(self.tokenizer, 'digest', '')}{packed}"
        return TorchGenerator(
            self.model,
            self.tokenizer,
            label=label,
            weights_digest=hashlib.sha256(asked.encode()).hexdigest(),
            batch_size=self.recipe.evaluation.batch_size,
            scope=scope,
        )
