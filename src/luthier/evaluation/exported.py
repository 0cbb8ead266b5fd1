"""Exported files beside the trained model: what each keeps of the gain, and which to use."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.evaluation.compare import compare
from luthier.files import readable
from luthier.schema.results import Artifact, Comparison, EvalResult, Quality

MOST_LOST = 0.02
"""Share of the trained model's score that a recommended file may lose, where the rows cannot tell."""


def quality_of(
    gain: Comparison,
    tuned: EvalResult,
    judged: EvalResult,
    speed: float | None,
    perplexity: float | None = None,
) -> Quality:
    """A file's scores beside those of the trained model on the same rows.

    gain: tuned against baseline on these rows; the share of it that is kept is only told where the
    tuning helped beyond doubt.
    """
    judged = judged.model_copy(update={"primary": tuned.primary, "settings": tuned.settings})
    main = compare(tuned, judged).main
    whole = gain.main.delta.value
    clear = gain.verdict == "better" and whole != 0
    return Quality(
        split=judged.split,
        metric=tuned.primary,
        score=main.tuned,
        difference=main.delta,
        verdict=main.verdict,
        kept=1 + main.delta.value / whole if clear else None,
        tokens_per_second=speed,
        perplexity=perplexity,
    )


def recommended(artifacts: Sequence[Artifact]) -> tuple[Artifact, str] | None:
    """The smallest file that is not worse than the trained model, and why; None where none was judged."""
    judged = [a for a in artifacts if a.quality is not None]
    if not judged:
        return None

    def loss(artifact: Artifact) -> float:
        """Share of the trained model's score that is lost."""
        quality = artifact.quality
        assert quality is not None
        sign = 1.0 if quality.score.greater_is_better else -1.0
        whole = abs(quality.score.value - quality.difference.value)
        return -sign * quality.difference.value / whole if whole else 0.0

    good = [a for a in judged if a.quality and a.quality.verdict != "worse" and loss(a) <= MOST_LOST]
    if not good:
        best = min(judged, key=loss)
        return best, f"every file loses more than {MOST_LOST:.0%}; this one least ({loss(best):.1%})"
    best = min(good, key=lambda a: a.bytes)
    quality = best.quality
    assert quality is not None
    lost = f"loses {loss(best):.1%}" if loss(best) > 0.0005 else "loses nothing"
    return best, (
        f"the smallest ({readable(best.bytes)}) that {lost} of {quality.metric} "
        f"on {quality.score.n} held-out rows"
    )
