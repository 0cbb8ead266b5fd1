"""Tune a chat model on pairs of a better and a worse answer: DPO and ORPO.

The reference of DPO is the model that training starts from. With adapters it is the same weights with
the adapters off, asked again with every step; where training overwrites what it started from, its
answers are weighed once, before the first step, and kept in the run's folder.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import safe_open, save_file
from torch import Tensor

from luthier.data.preferences import render_pairs
from luthier.errors import UsageError, did_you_mean
from luthier.evaluation.generation import evaluate, questions
from luthier.evaluation.metrics import METRICS
from luthier.evaluation.preference import PAIR_NAMES, pair_result
from luthier.models.lora import adapters_off
from luthier.schema.protocols import Generator, Splits
from luthier.schema.recipe import Lora, PreferenceChoice
from luthier.schema.results import EvalResult
from luthier.schema.rows import PairTokens, PreferenceChat
from luthier.tasks.base import Rows, Told
from luthier.tasks.causal import causal_objective
from luthier.tasks.chat import ChatTask
from luthier.tasks.pairs import PairBatches, PairObjective
from luthier.training.events import Metrics
from luthier.training.objective import MicroBatch, Objective

REFERENCE = "reference.safetensors"
"""In the run's folder: what the untouched model makes of the training and validation pairs."""
Sums = NDArray[np.float64]
"""Log-probabilities and tokens of both answers: [rows, chosen and rejected, sum and count]."""


class PreferenceTask(ChatTask):
    """Pairs of answers to the same prompt: the better one shall become likelier than the worse one."""

    def prepare(self) -> None:
        recipe = self.recipe
        self.choice = recipe.preference or PreferenceChoice()
        self.references: dict[str, Tensor] = {}
        self._weighed: dict[str, Sums] = {}
        for name in recipe.evaluation.metrics or ():
            if name not in PAIR_NAMES and name not in METRICS:
                known = [*PAIR_NAMES, *METRICS]
                raise UsageError(
                    f"{name} is not a metric of preferences or of answers",
                    hint=did_you_mean(name, known) or f"known metrics: {', '.join(known)}",
                )

    @property
    def overwrites(self) -> bool:
        """Whether training changes the weights that it starts from, so that they cannot be asked later."""
        method = self.recipe.method
        return not isinstance(method, Lora) or method.init_from is not None

    def objective(self) -> Objective:
        choice = self.recipe.training
        causal = causal_objective(self.model, compiled=bool(choice.compile), longest=choice.sequence_length)
        return PairObjective(causal, self.choice, None if self.overwrites else self._untouched)

    @contextmanager
    def _untouched(self, model: Any) -> Iterator[None]:
        """The model as it was, within the block: adapters off, no dropout."""
        was = model.training
        model.eval()
        try:
            with torch.no_grad(), adapters_off(model):
                yield
        finally:
            model.train(was)

    # -- batches -----------------------------------------------------------------------------

    def source(self, splits: Splits) -> PairBatches:  # type: ignore[override]
        return self._batches(splits.train, self.references.get("train"))

    def held_out(self, splits: Splits) -> Sequence[MicroBatch]:
        return self._batches(splits.validation, self.references.get("validation")).in_order()

    def _batches(self, pairs: Sequence[PairTokens], references: Tensor | None = None) -> PairBatches:
        training = self.recipe.training
        assert training.batch_size is not None
        assert training.micro_batch_size is not None
        return PairBatches(
            pairs,
            batch_size=training.batch_size,
            micro_batch_size=training.micro_batch_size,
            seed=self.recipe.seed,
            pad_id=self.tokenizer.pad_id,
            whole=self.choice.loss == "orpo" and self.recipe.data.train_on == "all",
            references=references,
        )

    def before_training(
        self, splits: Splits, run_directory: Path, digest: str, on_metrics: Callable[[Metrics], None]
    ) -> None:
        """Let the reference weigh all pairs where it cannot be asked later."""
        self.references = {}
        if self.choice.loss == "dpo" and self.overwrites:
            self.references = self._reference(splits, run_directory / REFERENCE, digest, on_metrics)

    def _reference(
        self, splits: Splits, file: Path, digest: str, on_metrics: Callable[[Metrics], None]
    ) -> dict[str, Tensor]:
        """Chosen minus rejected log-probability of each pair under the weights training starts from."""
        parts = {"train": splits.train, "validation": splits.validation}
        counts = {name: len(part) for name, part in parts.items()}
        if file.is_file():
            with safe_open(file, framework="pt") as kept:
                if (kept.metadata() or {}).get("digest") == digest:
                    found = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118 (no mapping)
                    if {name: len(one) for name, one in found.items()} == counts:
                        return found
        began = time.perf_counter()
        found = {}
        for name, part in parts.items():
            sums = self._sums(part, nullcontext)
            found[name] = torch.from_numpy(sums[:, 0, 0] - sums[:, 1, 0]).float().contiguous()
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(".part")
        save_file(found, fresh, metadata={"digest": digest})
        fresh.replace(file)
        seconds = time.perf_counter() - began
        text = (
            f"the untouched model weighed {sum(counts.values()):,} pairs as the reference in {seconds:.0f} s"
        )
        on_metrics({"kind": "note", "text": text})
        return found

    # -- judging -----------------------------------------------------------------------------

    def answer_metrics(self) -> tuple[str, ...] | None:
        """Those of the recipe's metrics that score answers, for conversations among the held-out rows."""
        named = tuple(name for name in self.recipe.evaluation.metrics or () if name in METRICS)
        return named or None

    def judge_base(
        self, splits: Splits, rows: Rows, *, told: Told, cache_dir: Path | None = None
    ) -> dict[str, EvalResult]:
        """Pairs under the untouched model; conversations by its greedy answers."""
        pairs, chats = _parted(rows)
        found = super().judge_base(splits, chats, told=told, cache_dir=cache_dir) if chats else {}
        generator = self.base_generator()
        for name, part in pairs.items():
            start = self._at_the_start(name, part)
            method = self.recipe.method
            if isinstance(method, Lora) and method.init_from is not None:
                own = self._sums(render_pairs(part, self.tokenizer), lambda: adapters_off(self.model))
            else:
                own = start
            found[name] = self._judged(generator, name, part, own, start, told, cache_dir)
        return {name: found[name] for name in rows}

    def judge_tuned(
        self, run_directory: Path, rows: Rows, *, told: Told, cache_dir: Path | None = None
    ) -> dict[str, EvalResult]:
        """The same under the trained model."""
        pairs, chats = _parted(rows)
        starts = {name: self._at_the_start(name, part) for name, part in pairs.items()}
        generator = self.tuned_generator(run_directory)
        found = super().judge_tuned(run_directory, chats, told=told, cache_dir=cache_dir) if chats else {}
        for name, part in pairs.items():
            own = self._sums(render_pairs(part, self.tokenizer), nullcontext)
            found[name] = self._judged(generator, name, part, own, starts[name], told, cache_dir)
        return {name: found[name] for name in rows}

    def _at_the_start(self, split: str, rows: Sequence[PreferenceChat]) -> Sums:
        """What the weights that training starts from make of held-out pairs; remembered."""
        key = hashlib.sha256("\n".join([split, *(row.id for row in rows)]).encode()).hexdigest()
        if key not in self._weighed:
            pairs = render_pairs(rows, self.tokenizer)
            if not self.overwrites:
                self._weighed[key] = self._sums(pairs, lambda: adapters_off(self.model))
            else:
                if self.trained_digest is not None or self.merged:
                    self._load_base()
                self._weighed[key] = self._sums(pairs, nullcontext)
        return self._weighed[key]

    @torch.no_grad()
    def _sums(self, pairs: Sequence[PairTokens], scope: Callable[[], AbstractContextManager[None]]) -> Sums:
        """Log-probability of both answers of each pair, and their tokens: [rows, 2, 2]."""
        objective = PairObjective(causal_objective(self.model), self.choice)
        batches = self._batches(pairs)
        found = np.zeros((len(pairs), 2, 2))
        was = self.model.training
        self.model.eval()
        try:
            with scope(), objective.scope(self.model):
                for places, batch in batches.placed():
                    sums, counts = objective.answers(self.model, batch.to(self.device))
                    both = torch.stack((sums, counts), dim=1).double().cpu().numpy()
                    found[places] = both.reshape(len(places), 2, 2)
        finally:
            self.model.train(was)
        return found

    def _judged(  # noqa: PLR0917 (private)
        self,
        generator: Generator,
        split: str,
        rows: Sequence[PreferenceChat],
        own: Sums,
        start: Sums,
        told: Told,
        cache_dir: Path | None,
    ) -> EvalResult:
        """One split of pairs, with greedy answers too where the recipe names a metric of answers."""
        began = time.perf_counter()
        evaluation = self.recipe.evaluation
        asked = evaluation.metrics or ()
        answers = None
        progress = told(f"{generator.label} on {split}")
        if named := self.answer_metrics():
            answers = evaluate(
                generator,
                rows,
                split=split,
                metrics=named,
                max_new_tokens=evaluation.max_new_tokens,
                progress=progress,
                cache_dir=cache_dir,
            )
        result = pair_result(
            questions(rows),
            own,
            start if self.choice.loss == "dpo" else None,
            beta=self.choice.beta,
            split=split,
            model=generator.label,
            weights_digest=generator.weights_digest,
            metrics=asked,
            answers=answers,
        )
        progress(len(rows), len(rows))
        return result.model_copy(update={"seconds": time.perf_counter() - began})


def _parted(rows: Rows) -> tuple[dict[str, Sequence[PreferenceChat]], Rows]:
    """Splits of pairs, and splits of conversations."""
    pairs = {name: part for name, part in rows.items() if part and isinstance(part[0], PreferenceChat)}
    return pairs, {name: part for name, part in rows.items() if name not in pairs}
