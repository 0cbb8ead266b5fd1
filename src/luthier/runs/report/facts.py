"""What was asked, chosen, read and written, as rows of tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from luthier.evaluation.exported import recommended
from luthier.runs.report import words
from luthier.runs.report.context import ReportContext
from luthier.schema.plan import Candidate
from luthier.schema.results import Artifact


@dataclass(frozen=True, slots=True)
class Fact:
    """A row of a two- or three-column table."""

    label: str
    value: str
    source: str = ""


def request_facts(context: ReportContext) -> list[Fact]:
    """What was asked of the recommender, where it was; else of the recipe."""
    if context.plan is None:
        return []
    request = context.plan.request
    default = type(request)()
    hidden = {"words", "mapped", "profile"}
    found = [Fact("purpose", request.purpose)]
    if request.words:
        found.insert(0, Fact("in words", words.clean(request.words, 400)))
    for name in type(request).model_fields:
        value = getattr(request, name)
        if name in hidden or name == "purpose" or value == getattr(default, name):
            continue
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        found.append(Fact(name.replace("_", " "), words.clean(text, 200)))
    return found


def chosen_facts(context: ReportContext) -> list[Fact]:
    """The settings that made this run, each with where it came from."""
    recipe, sources = context.recipe, context.recipe.sources
    flat: dict[str, object] = {"model.id": recipe.model.id}
    if context.revision:
        flat["model.revision"] = context.revision
    for section in ("model", "method", "training"):
        record = getattr(recipe, section)
        for key, value in record.model_dump(mode="json").items():
            name = f"{section}.{key}"
            if name in flat or value is None or value == []:
                continue
            default = type(record).model_fields[key].default
            if name in sources or value != default or name in ("method.name", "method.rank"):
                flat[name] = value
    flat["evaluation.max_new_tokens"] = recipe.evaluation.max_new_tokens
    flat["seed"] = recipe.seed

    def source_of(name: str) -> str:
        if name in sources:
            return sources[name]
        section, _, key = name.rpartition(".")
        record = getattr(recipe, section) if section else recipe
        field = type(record).model_fields.get(key)
        return "default" if field is not None and getattr(record, key) == field.default else "given"

    return [
        Fact(name, words.clean(_plain(value), 300), words.clean(source_of(name), 300))
        for name, value in flat.items()
    ]


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return words.figure(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """One recommended model."""

    rank: int
    name: str
    method: str
    memory: str
    time: str
    licence: str
    why: tuple[str, ...]
    chosen: bool


def candidates(context: ReportContext) -> list[CandidateRow]:
    """The recommended models with their reasons, the chosen one marked."""
    if context.plan is None:
        return []
    return [_candidate(context, c) for c in context.plan.candidates[:5]]


def _candidate(context: ReportContext, c: Candidate) -> CandidateRow:
    seconds = c.estimate.seconds
    return CandidateRow(
        rank=c.rank,
        name=c.card.id,
        method=c.method.name,
        memory=words.memory(c.estimate.process.expected),
        time="" if seconds is None else words.duration(seconds.expected),
        licence=c.card.licence,
        why=tuple(words.clean(r.text, 300) for r in c.reasons[:4]),
        chosen=context.recipe.model.id in (c.card.id, c.weights),
    )


@dataclass(frozen=True, slots=True)
class SplitRow:
    """One split of the data."""

    name: str
    read: str
    kept: str
    dropped: str
    tokens: str
    note: str


def split_rows(context: ReportContext) -> list[SplitRow]:
    """What was read, kept and dropped."""
    if context.data is None:
        return []
    found = []
    for s in context.data.splits:
        notes = []
        if s.cut_from_train:
            notes.append("cut from train by seed")
        if s.truncated:
            notes.append(f"{s.truncated:,} truncated")
        if s.duplicates:
            notes.append(f"{s.duplicates:,} duplicates")
        for leaks, what in ((context.data.leakage, "rows"), (context.data.prompt_leakage, "prompts")):
            if leaks.get(s.name):
                notes.append(f"{leaks[s.name]:,} {what} stand in train too")
        dropped = ", ".join(f"{n:,} {words.clean(reason, 80)}" for reason, n in s.dropped.items())
        tokens = "" if s.tokens is None else f"{s.tokens.median:,} median, {s.tokens.maximum:,} longest"
        found.append(SplitRow(s.name, f"{s.read:,}", f"{s.kept:,}", dropped, tokens, "; ".join(notes)))
    return found


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """One thing written for use elsewhere."""

    kind: str
    path: str
    size: str
    predicted: str
    parity: str
    passed: str
    """yes, no or empty where there was no check."""
    details: tuple[str, ...]
    sha256: str


def artifact_rows(artifacts: Iterable[Artifact]) -> list[ArtifactRow]:
    """Sizes, predicted sizes and whether each answers like the trained model."""
    found = []
    for a in artifacts:
        predicted = ""
        if a.predicted_bytes:
            off = (a.bytes / a.predicted_bytes - 1) * 100
            sign = "+" if off >= 0 else words.MINUS
            predicted = f"{words.size(a.predicted_bytes)} ({sign}{abs(off):.1f} %)"
        parity, passed, details = "", "", [*a.notes]
        if a.parity is not None:
            p = a.parity
            passed = "yes" if p.passed else "no"
            parity = f"{p.equal_tokens}/{p.compared_tokens} tokens"
            details += [
                f"prompt ids equal on {p.equal_token_ids} of {p.prompts}",
                f"{p.near_ties} ended at a near-tie" if p.near_ties else "",
                "" if p.mean_kl is None else f"mean KL {words.figure(p.mean_kl, 2)} nats",
                "" if p.stops else "the end token does not stop it",
                *p.problems,
            ]
        found.append(
            ArtifactRow(
                kind=a.kind,
                path=a.path,
                size=words.size(a.bytes),
                predicted=predicted,
                parity=parity,
                passed=passed,
                details=tuple(words.clean(d, 300) for d in details if d),
                sha256=a.sha256,
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class FileScore:
    """What one exported file costs, judged by the run's own metric."""

    kind: str
    score: str
    interval: str
    difference: str
    difference_interval: str
    verdict: str
    verdict_kind: str
    kept: str
    perplexity: str
    speed: str


@dataclass(frozen=True, slots=True)
class FileScores:
    """All files that were judged, on the same rows."""

    metric: str
    split: str
    rows: int
    files: tuple[FileScore, ...]
    advice: str
    """Which one to use, and why."""


def file_scores(artifacts: Sequence[Artifact]) -> FileScores | None:
    """The table of quality by file; None where none was judged."""
    found = []
    for a in artifacts:
        if (q := a.quality) is None:
            continue
        share = words.is_share(q.metric, q.score)
        low, high = (words.signed(end, share=share) for end in (q.difference.low, q.difference.high))
        ends = [words.score(q.metric, end, share=share) for end in (q.score.low, q.score.high)]
        found.append(
            FileScore(
                kind=a.kind,
                score=words.score(q.metric, q.score.value, share=share),
                interval=" to ".join(ends),
                difference=words.signed(q.difference.value, share=share),
                difference_interval=f"{low} to {high}",
                verdict=words.VERDICTS[q.verdict],
                verdict_kind=q.verdict,
                kept="" if q.kept is None else f"{q.kept * 100:.0f} %",
                perplexity="" if q.perplexity is None else f"{q.perplexity:.3f}",
                speed="" if not q.tokens_per_second else f"{q.tokens_per_second:.0f}",
            )
        )
    if not found:
        return None
    first = next(a.quality for a in artifacts if a.quality is not None)
    best = recommended(artifacts)
    return FileScores(
        metric=words.metric_name(first.metric),
        split=first.split,
        rows=first.score.n,
        files=tuple(found),
        advice="" if best is None else f"{best[0].kind}, {best[1]}",
    )


def machine_facts(context: ReportContext) -> list[Fact]:
    """Where the run was done."""
    found = []
    hardware = context.hardware
    if hardware is not None:
        p = hardware.processor
        sets = f", {' '.join(p.instruction_sets)}" if p.instruction_sets else ""
        found.append(Fact("Processor", f"{p.name}, {p.cores} cores{sets}"))
        free = words.memory(hardware.memory_free)
        found.append(Fact("Memory", f"{words.memory(hardware.memory_total)}, {free} free at the start"))
        found += [
            Fact(f"GPU {g.index}", f"{g.name}, {words.memory(g.memory_total)}") for g in hardware.accelerators
        ]
        if hardware.os:
            found.append(Fact("System", hardware.os))
    if context.matrix_gflops is not None:
        found.append(Fact("Matrix rate", f"{words.figure(context.matrix_gflops, 3)} GFLOP/s, measured"))
    if context.train is not None:
        t = context.train
        found.append(Fact("Trained on", f"{t.device} in {t.dtype}"))
        share = t.trainable_parameters / t.total_parameters * 100 if t.total_parameters else 0
        of = f"{words.count(t.trainable_parameters)} of {words.count(t.total_parameters)}"
        found.append(Fact("Parameters", f"{of} trained ({share:.2g} %)"))
        found.append(Fact("Tokens", f"{t.tokens:,}, of which {t.trained_tokens:,} carried loss"))
    return found
