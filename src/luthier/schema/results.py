"""What training, evaluation and export hand on."""

from __future__ import annotations

from typing import Literal

from luthier.schema.base import Record

Verdict = Literal["better", "worse", "inconclusive"]


class Metric(Record):
    """A score with its 95 % interval over n rows."""

    value: float
    low: float
    high: float
    n: int
    greater_is_better: bool = True


class ScoredRow(Record):
    """One held-out row, answered and scored."""

    id: str
    """Stable name of the row (content digest), the same for every model judged on it."""
    prompt: str
    """The last user turn, for people to read."""
    expected: str
    answer: str
    scores: dict[str, float]
    """Metric -> score of this row."""
    group: str | None = None
    """Rows with the same group share a source and are resampled together."""
    gold: tuple[str, ...] = ()
    """Classification: the expected labels."""
    given: tuple[str, ...] = ()
    """Classification: the labels that were answered."""
    figures: dict[str, float] = {}
    """Numbers of this row that scores of the whole set are computed from (``confidence``, ``nats``...)."""


class EvalResult(Record):
    """One model judged on one split."""

    split: str
    model: str
    """Which weights answered: ``base``, ``tuned``, ``gguf:Q4_K_M``..."""
    weights_digest: str
    metrics: dict[str, Metric]
    primary: str
    """The metric that the verdict rests on."""
    rows: tuple[ScoredRow, ...]
    seconds: float
    settings: dict[str, str | int | float | bool] = {}
    """What must be equal for two results to be compared: decoding, longest answer, metrics."""
    reason: str = ""
    """Why these metrics, and why that one is primary."""
    fields: dict[str, Metric] = {}
    """For JSON answers: share of rows that have each expected field right."""
    cut_off: int = 0
    """Answers that ended at the longest length allowed, not at an end token."""
    cached: int = 0
    """Answers taken from an earlier evaluation of the same weights, prompts and settings."""


class Difference(Record):
    """Tuned minus baseline on the same rows, for one metric."""

    metric: str
    baseline: Metric
    tuned: Metric
    delta: Metric
    p_value: float
    verdict: Verdict
    improved: int
    """Rows that got better."""
    regressed: int
    """Rows that got worse."""
    detectable: float | None = None
    """The smallest difference that this many rows could have shown (80 % power)."""
    rows_needed: int | None = None
    """Rows that would show a true difference as large as the observed one (80 % power)."""


class Comparison(Record):
    """Baseline against tuned on one split."""

    split: str
    primary: str
    differences: tuple[Difference, ...]
    verdict: Verdict
    """Verdict of the primary metric."""

    @property
    def main(self) -> Difference:
        return next(d for d in self.differences if d.metric == self.primary)


class Floor(Record):
    """The tuned model against something that costs no training, on the same rows."""

    label: str
    """Copy, the commonest answer, the base model with examples in its prompt."""
    comparison: Comparison
    """The floor as baseline, the tuned model as tuned."""


class TrainResult(Record):
    """What a finished training says of itself."""

    steps: int
    epochs: float
    first_loss: float
    last_loss: float
    best_step: int
    best_validation_loss: float | None
    selected_checkpoint: str
    """Path relative to the run directory."""
    skipped_steps: int = 0
    """Steps left out because their loss or gradient was not a number."""
    stopped_early: bool = False
    """Whether the validation loss had not fallen for as long as ``training.patience`` says."""
    seconds: float
    """Wall time of training steps and validation, over all resumed parts."""
    tokens: int
    """Tokens that went through the model, padding not counted."""
    trained_tokens: int
    """Tokens that carried loss."""
    tokens_per_second: float
    peak_memory: int
    """Peak bytes: resident set on a CPU, allocated tensors on a GPU."""
    training_peak: int = 0
    """Peak bytes since training began, what the process held before left out; 0 where that cannot be told."""
    phase_memory: dict[str, int] = {}
    """Phase (load, forward, backward, optimizer) -> its peak bytes over the first steps, the largest ones."""
    trainable_parameters: int
    total_parameters: int
    device: str
    dtype: str


class ParityCheck(Record):
    """One exported artifact against the trained model, on the same prompts."""

    prompts: int
    equal_token_ids: int
    """Prompts whose rendered token ids are equal."""
    compared_tokens: int
    """Greedy tokens compared (up to the first near-tie of each prompt)."""
    equal_tokens: int
    near_ties: int
    """Prompts whose comparison ended at a near-tie (reference gap under 0.05 nats)."""
    mean_kl: float | None = None
    """Mean Kullback-Leibler divergence in nats from the trained model, top tokens and a tail bucket."""
    stops: bool
    """Whether the end-of-turn token ends generation."""
    passed: bool
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What a deployment does otherwise without being wrong: a date in the prompt."""
    largest_difference: float | None = None
    """Models that write no text: largest difference of their logits, scores or vectors on these inputs."""
    agreement: float | None = None
    """Models that write no text: least cosine, rank correlation of scores, share of same labels."""


class Quality(Record):
    """An exported model judged on held-out rows, beside the trained model on the same rows."""

    split: str
    metric: str
    score: Metric
    difference: Metric
    """Exported minus trained."""
    verdict: Verdict
    kept: float | None = None
    """Share of the tuning's gain that is kept; None where the tuning gained nothing beyond doubt."""
    tokens_per_second: float | None = None
    """New tokens over wall time here, prompts included."""
    perplexity: float | None = None
    """Of the expected answers' tokens on some of these rows, in llama.cpp; the end of turn counts."""


class Artifact(Record):
    """A file or folder that was written for use elsewhere."""

    kind: str
    """``adapter``, ``merged``, ``onnx``, ``gguf:F16``, ``gguf:Q4_K_M``, ``model-card``..."""
    path: str
    """Path relative to the run directory."""
    bytes: int
    sha256: str
    """Digest of the file, or of the sorted digests of a folder's files."""
    predicted_bytes: int | None = None
    parity: ParityCheck | None = None
    quality: Quality | None = None
    notes: tuple[str, ...] = ()
