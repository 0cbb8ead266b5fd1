"""Tune a classifier: one label a text (softmax) or any number of them (sigmoid).

An untrained head is no baseline, so the floor is the commonest label of the training rows; a base that
has a head over the same labels answers for itself. Temperature, thresholds and the confidence under which
an input counts as out of scope are chosen on the validation rows once the weights are final.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.data.inputs import Input, inputs_of
from luthier.errors import CheckpointError, RecipeError
from luthier.evaluation.calibration import (
    choose_refusal,
    choose_thresholds,
    fit_temperature,
    probabilities,
)
from luthier.evaluation.classification import Given, given_by, judge_labels, majority
from luthier.files import write_text
from luthier.models.classifier import load_classifier, logits_of, saved_labels
from luthier.models.load import DTYPES, quiet
from luthier.models.lora import adapters_off
from luthier.schema.classification import DECISION_FILE, Decision
from luthier.schema.protocols import Progress, Splits
from luthier.schema.recipe import ClassificationChoice
from luthier.schema.results import EvalResult, ParityCheck
from luthier.schema.rows import LabelRow
from luthier.tasks.base import ModelTask, Rows, Told
from luthier.tasks.encoded import EncodedRows, encode, pad, reads_segments
from luthier.tasks.planned import by_length, filled_on
from luthier.training.objective import Loss, MicroBatch, Objective

DECISION = "decision.json"
"""In a run's folder: what was chosen on the validation rows."""
SAME_LOGITS = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference of logits between the saved and the trained model, relative to the largest logit."""


@dataclass(frozen=True)
class ClassificationObjective:
    """Cross-entropy over labels (multi-class), or the binary one of each label (multi-label), in nats.

    weights: [labels] how much a row of each class counts, or (multi) how much a positive of each label
    counts beside its negatives; None counts all alike.
    """

    multi: bool
    smoothing: float = 0.0
    weights: Tensor | None = None

    def scope(self, model: Any) -> AbstractContextManager[None]:
        del model
        return nullcontext()

    def weight(self, batch: MicroBatch) -> float:
        if self.multi:
            return float(batch.labels.numel())
        if self.weights is None:
            return float(len(batch.labels))
        return float(self.weights[batch.labels.to(self.weights.device)].sum())

    def __call__(self, model: Any, batch: MicroBatch) -> Loss:
        logits = model(**batch.inputs).logits.float()  # type: ignore[attr-defined]
        weights = None if self.weights is None else self.weights.to(logits.device)
        if self.multi:
            targets = batch.labels.float()
            if self.smoothing:
                targets = targets * (1 - self.smoothing) + self.smoothing / 2
            total = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")
        else:
            total = F.cross_entropy(
                logits, batch.labels, weight=weights, label_smoothing=self.smoothing, reduction="sum"
            )
        return Loss(total, self.weight(batch))


def balancing(counts: Sequence[int], rows: int, choice: str, *, multi: bool) -> Tensor | None:
    """Weights of labels by how rare they are: [labels]; None where all count alike.

    balanced: rows / (labels x count), as scikit-learn's; for multi-label negatives / positives.
    sqrt: the square root of that, which moves less for very rare labels.
    """
    if choice == "none":
        return None
    found = torch.tensor(counts, dtype=torch.float32).clamp_min(1)
    weights = (rows - found).clamp_min(1) / found if multi else rows / (len(counts) * found)
    return weights.sqrt() if choice == "sqrt" else weights


@torch.no_grad()
def start_at_shares(model: Any, counts: Sequence[int], rows: int) -> None:
    """Let a fresh head begin with each label as likely as it is in training (Lin et al. 2017, section 3.3).

    Labels are rare: a head that begins at one half spends its first steps pushing all of them down through
    the backbone, which can lose what it knew. A head without a bias stays as it is.
    """
    biases = [m.bias for m in model.modules() if isinstance(m, torch.nn.Linear) and m.bias is not None]
    head = next((bias for bias in reversed(biases) if len(bias) == len(counts)), None)
    if head is None:
        return
    shares = (torch.tensor(counts, dtype=torch.float32) + 1) / (rows + 2)
    head.copy_(torch.logit(shares).to(head))


class ClassificationTask(ModelTask):
    """Labels of texts or pairs of texts. The labels are those of the training rows, in the data's order."""

    task_type = "SEQ_CLS"

    def prepare(self) -> None:
        self.choice = self.recipe.classification or ClassificationChoice()
        self.multi = self.recipe.task == "multi-label-classification"
        if not self.choice.labels:
            raise RecipeError(
                "the recipe is not resolved: classification.labels has no value",
                hint="let luthier plan derive it, or set it",
            )
        self.labels: tuple[str, ...] = self.choice.labels
        self.place = {label: index for index, label in enumerate(self.labels)}
        self.fresh: tuple[str, ...] = ()
        self.decision: Decision | None = None
        self.weights: Tensor | None = None

    def load_model(self) -> Any:
        choice = self.recipe.model
        assert choice.dtype is not None
        model, self.fresh = load_classifier(
            self.directory,
            self.labels,
            multi=self.multi,
            dtype=choice.dtype,
            pad_id=self.tokenizer.pad_id,
            seed=self.recipe.seed,
            device=self.device,
            attention=choice.attention,
            trust_remote_code=choice.trust_remote_code,
        )
        return model

    def fresh_modules(self) -> tuple[str, ...]:
        return self.fresh

    @property
    def answers_already(self) -> bool:
        """Whether the base has a head over the same labels."""
        return saved_labels(self.directory) == self.labels

    # -- training ----------------------------------------------------------------------------

    def objective(self) -> Objective:
        return ClassificationObjective(self.multi, self.choice.label_smoothing, self.weights)

    def source(self, splits: Splits) -> EncodedRows:
        rows = self._usable(splits.train)
        counts = Counter(label for row in rows for label in row.labels)
        self.weights = balancing(
            [counts[label] for label in self.labels], len(rows), self.choice.class_weights, multi=self.multi
        )
        if self.multi and not self.answers_already:
            start_at_shares(self.model, [counts[label] for label in self.labels], len(rows))
        return self._rows(rows)

    def held_out(self, splits: Splits) -> Sequence[MicroBatch]:
        choice = self.recipe.training
        assert choice.micro_batch_size is not None
        assert choice.sequence_length is not None
        rows = self._usable(splits.validation)
        if not rows:
            return []
        return self._rows(rows).in_order(choice.micro_batch_size * choice.sequence_length)

    def _usable(self, rows: Sequence[LabelRow]) -> list[LabelRow]:
        """Rows whose labels the head has; those out of scope, and labels seen nowhere else, teach nothing."""
        return [row for row in rows if all(label in self.place for label in row.labels)]

    def _rows(self, rows: Sequence[LabelRow]) -> EncodedRows:
        choice = self.recipe.training
        assert choice.batch_size is not None
        assert choice.micro_batch_size is not None
        targets = self._targets(rows)
        return EncodedRows(
            encode(
                [inputs_of(row, self.recipe.task)[0] for row in rows],
                self.tokenizer,
                most=choice.sequence_length,
            ),
            lambda indices: targets[list(indices)],
            [f"{row.file}:{row.line}" for row in rows],
            batch_size=choice.batch_size,
            micro_batch_size=choice.micro_batch_size,
            seed=self.recipe.seed,
            pad_id=self.tokenizer.pad_id,
            segments=self._segments,
            filled=filled_on(self.device),
        )

    @property
    def _segments(self) -> bool:
        return reads_segments(self.model, self.tokenizer)

    def _targets(self, rows: Sequence[LabelRow]) -> Tensor:
        """[rows] label indices, or (multi-label) [rows, labels] of 0 and 1."""
        if not self.multi:
            return torch.tensor([self.place[row.labels[0]] for row in rows], dtype=torch.long)
        hot = torch.zeros((len(rows), len(self.labels)))
        for index, row in enumerate(rows):
            for label in row.labels:
                hot[index, self.place[label]] = 1
        return hot

    # -- what is chosen on the validation rows -----------------------------------------------

    def after_training(self, splits: Splits, run_directory: Path) -> None:
        self.decision = self._decide(splits.validation)
        write_text(run_directory / DECISION, self.decision.model_dump_json(indent=1) + "\n")

    def before_answers(self, run_directory: Path) -> None:
        path = run_directory / DECISION
        if not path.is_file():
            raise CheckpointError(
                f"{DECISION} is missing: what was chosen on the validation rows",
                file=run_directory,
                hint="remove train.json there and go on with `luthier train --resume`: it is chosen again",
            )
        self.decision = Decision.model_validate_json(path.read_text(encoding="utf-8"))

    def _decide(self, validation: Sequence[LabelRow]) -> Decision:
        plain = Decision(
            kind="multi-label" if self.multi else "multi-class",
            labels=self.labels,
            refuse_below=self.choice.refuse_below,
            out_of_scope=self.choice.out_of_scope,
        )
        known = self._usable(validation)
        if not known or not self.choice.calibrate:
            why = (
                "there are no validation rows" if self.choice.calibrate else "classification.calibrate is off"
            )
            return plain.model_copy(update={"notes": (f"{why}: thresholds and temperature are not chosen",)})
        logits = self._logits(known)
        gold = self._targets(known).double().numpy()
        temperature = fit_temperature(logits, gold, multi=self.multi)
        chosen = plain.model_copy(update={"temperature": temperature, "chosen_on": len(validation)})
        if self.multi:
            return chosen.model_copy(
                update={"thresholds": choose_thresholds(probabilities(logits, chosen), gold)}
            )
        return self._refusing(chosen, known, logits, validation)

    def _refusing(
        self, chosen: Decision, known: list[LabelRow], logits: Any, validation: Sequence[LabelRow]
    ) -> Decision:
        """The confidence under which an input is out of scope, where rows say what that is."""
        name = self.choice.out_of_scope
        if name is None or self.choice.refuse_below is not None:
            return chosen
        outside = [row for row in validation if row.labels == (name,)]
        if not outside:
            note = f"no validation row is {name}: nothing is refused (set classification.refuse_below)"
            return chosen.model_copy(update={"notes": (note,)})
        chances = probabilities(np.concatenate([logits, self._logits(outside)]), chosen)
        best = chances.argmax(axis=1)
        right = [self.place[row.labels[0]] == place for row, place in zip(known, best, strict=False)]
        return chosen.model_copy(
            update={
                "refuse_below": choose_refusal(
                    chances.max(axis=1),
                    np.array([*right, *[False] * len(outside)], dtype=float),
                    np.array([0.0] * len(known) + [1.0] * len(outside)),
                )
            }
        )

    # -- answers -----------------------------------------------------------------------------

    def judge_base(
        self, splits: Splits, rows: Rows, *, told: Told, cache_dir: Path | None = None
    ) -> dict[str, EvalResult]:
        """The commonest label of the training rows; the base itself where it has a head over these labels."""
        del cache_dir
        if self.answers_already:
            self.ensure_base()
            with adapters_off(self.model):
                return {
                    name: self._judge("base", self.base_digest, name, part, told)
                    for name, part in rows.items()
                }
        floor = majority(self._usable(splits.train) or splits.train, multi=self.multi)
        digest = hashlib.sha256(f"{floor.labels}{floor.confidence}".encode()).hexdigest()
        reason = f"an untrained head says nothing, so the floor is the commonest label: {floor.labels[0]}"
        found = {
            name: self._scored("majority", digest, name, part, [floor] * len(part), reason=reason)
            for name, part in rows.items()
        }
        # What always says the same is as sure as it is right; nothing could be learned by comparing that.
        return {
            name: result.model_copy(
                update={"metrics": {k: v for k, v in result.metrics.items() if k != "calibration_error"}}
            )
            for name, result in found.items()
        }

    def judge_tuned(
        self, run_directory: Path, rows: Rows, *, told: Told, cache_dir: Path | None = None
    ) -> dict[str, EvalResult]:
        """The trained model with what was chosen on the validation rows."""
        del cache_dir
        self.load_trained(run_directory)
        assert self.trained_digest is not None
        return {
            name: self._judge("tuned", self.trained_digest, name, part, told) for name, part in rows.items()
        }

    def tuned_logits(self, run_directory: Path, inputs: Sequence[Input]) -> tuple[Any, int | None]:
        """Logits of the trained model, [inputs, labels], and the longest input that it reads."""
        self.load_trained(run_directory)
        return self._logits_of(inputs), self._longest

    def _judge(self, label: str, digest: str, name: str, rows: Sequence[LabelRow], told: Told) -> EvalResult:
        began = time.perf_counter()
        logits = self._logits(rows, progress=told(f"{label} on {name}"))
        decision = self.decision if label == "tuned" else None
        plain = Decision(
            kind="multi-label" if self.multi else "multi-class",
            labels=self.labels,
            out_of_scope=self.choice.out_of_scope,
        )
        given = given_by(logits, decision or plain)
        return self._scored(label, digest, name, rows, given, seconds=time.perf_counter() - began)

    def _scored(
        self,
        label: str,
        digest: str,
        name: str,
        rows: Sequence[LabelRow],
        given: Sequence[Given],
        *,
        seconds: float = 0.0,
        reason: str = "",
    ) -> EvalResult:
        return judge_labels(
            rows,
            given,
            split=name,
            model=label,
            weights_digest=digest,
            multi=self.multi,
            out_of_scope=self.choice.out_of_scope,
            metrics=self.recipe.evaluation.metrics,
            seconds=seconds,
            reason=reason,
        )

    def _logits(self, rows: Sequence[LabelRow], *, progress: Progress | None = None) -> Any:
        """[rows, labels], of the model as it is now. Inputs are cut only at the model's own limit."""
        return self._logits_of([inputs_of(row, self.recipe.task)[0] for row in rows], progress=progress)

    def _logits_of(self, texts: Sequence[Input], *, progress: Progress | None = None) -> Any:
        inputs = encode(texts, self.tokenizer, most=self._longest)
        room = (self.recipe.evaluation.batch_size or 16) * max(len(one) for one in inputs)
        batches = []
        for places in by_length([len(one) for one in inputs], room):
            batch = pad(
                [inputs[place] for place in places],
                torch.zeros(len(places)),
                pad_id=self.tokenizer.pad_id,
                segments=self._segments,
            )
            batches.append((places, batch.inputs))
        return logits_of(self.model, batches, len(inputs), progress=progress)

    @property
    def _longest(self) -> int | None:
        return self.tokenizer.max_length or self.recipe.training.sequence_length

    # -- what is saved -----------------------------------------------------------------------

    def save_extra(self, directory: Path) -> None:
        assert self.decision is not None
        write_text(directory / DECISION_FILE, self.decision.model_dump_json(indent=1) + "\n")

    def check_saved(self, directory: Path, rows: Sequence[LabelRow]) -> ParityCheck | None:
        """Logits of the folder as transformers reads it against those of the trained model."""
        if not rows:
            return None
        mine = self._logits(rows)
        theirs, same_ids = self._read_back(directory, rows)
        scale = max(1.0, float(np.abs(mine).max()))
        worst = float(np.abs(mine - theirs).max())
        dtype = self.recipe.model.dtype or "float32"
        problems = []
        if same_ids < len(rows):
            problems.append(
                f"{len(rows) - same_ids} of {len(rows)} texts have other token ids in transformers"
            )
        if worst > SAME_LOGITS[dtype] * scale:
            problems.append(f"logits differ by up to {worst:.2g} (the largest is {scale:.2g})")
        return ParityCheck(
            prompts=len(rows),
            equal_token_ids=same_ids,
            compared_tokens=len(rows),
            equal_tokens=int((mine.argmax(axis=1) == theirs.argmax(axis=1)).sum()),
            near_ties=0,
            stops=True,
            passed=not problems,
            problems=tuple(problems),
            largest_difference=worst,
        )

    def _read_back(self, directory: Path, rows: Sequence[LabelRow]) -> tuple[Any, int]:
        """Logits of a saved folder, one row at a time as anybody would ask it, and how many ids are ours."""
        with quiet():
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            model = AutoModelForSequenceClassification.from_pretrained(
                directory, dtype=DTYPES[self.recipe.model.dtype or "float32"]
            )
            tokenizer = AutoTokenizer.from_pretrained(directory)
        model.to(self.device).eval()
        found, same = [], 0
        for row in rows:
            one = inputs_of(row, self.recipe.task)[0]
            texts = one if isinstance(one, tuple) else (one,)
            most = {"max_length": self._longest} if self._longest else {}
            batch = tokenizer(*texts, truncation=bool(most), return_tensors="pt", **most)
            (ours,) = encode([one], self.tokenizer, most=self._longest)
            same += batch["input_ids"][0].tolist() == ours.ids
            with torch.inference_mode():
                found.append(model(**batch.to(self.device)).logits[0].double().cpu().numpy())
        return np.stack(found), same
