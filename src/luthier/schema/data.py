"""What is said of a run's data: what was read, kept, dropped and why; profiles and findings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.schema.base import Record


class Lengths(Record):
    """Quantiles of a list of whole numbers (nearest rank), with its sum."""

    count: int
    total: int
    minimum: int
    median: int
    p90: int
    p95: int
    p99: int
    maximum: int


class SplitReport(Record):
    """One split of a run: ``read = kept + sum(dropped)``."""

    name: str
    files: tuple[str, ...]
    """Where its rows came from, as given in the recipe and resolved."""
    cut_from_train: bool = False
    """True where the split was cut from the training files by seed."""
    read: int
    kept: int
    dropped: dict[str, int] = {}
    """Reason -> rows."""
    truncated: int = 0
    """Rows that lost their tail to the sequence length."""
    duplicates: int = 0
    """Rows whose content stands in the split already."""
    weights: dict[str, float] = {}
    """Source -> how often its rows are seen in an epoch, where that is not once."""
    copies: int = 0
    """Rows seen again in an epoch because of weights above 1; not counted as kept."""
    tokens: Lengths | None = None
    """Tokens a row; None for rows that are not rendered (test splits)."""
    trained_tokens: int = 0
    """Tokens that carry loss."""
    digest: str
    """SHA-256 over the sorted content digests of the kept rows: equal data give equal digests."""


class DataReport(Record):
    """All that a run's report says of its data."""

    format: str
    """Shape that the rows were read as."""
    version: str | None = None
    """``name@digest`` over contents, mapping, fixes and split seed."""
    columns: dict[str, str] = {}
    """Role -> column, as mapped."""
    splits: tuple[SplitReport, ...]
    leakage: dict[str, int] = {}
    """Held-out split -> rows whose whole content stands in train too."""
    prompt_leakage: dict[str, int] = {}
    """Held-out split -> rows whose prompt (not answer) stands in train too."""
    tokenizer_digest: str | None = None
    digest: str
    """SHA-256 over the digests of all splits and over all rendered tokens with their masks."""
    notes: tuple[str, ...] = ()
    """What a person should know: files left aside, turns without an end token, leakage."""

    def split(self, name: str) -> SplitReport:
        return next(split for split in self.splits if split.name == name)


class DataProfile(Record):
    """What the advisor and the planner need to know of a data set."""

    rows: int
    """Rows that can be used; all figures are of these."""
    read: int = 0
    """Rows read: ``read = rows + sum(dropped)``."""
    dropped: dict[str, int] = {}
    """Reason -> rows that cannot be used."""
    format: str
    bytes: int
    """Bytes of text in the rows, UTF-8."""
    tokens: Lengths
    """Tokens a row, rendered with the chat template, or estimated (see ``basis``)."""
    answer_tokens: Lengths
    """Tokens of the assistant turns of a row."""
    turns: Lengths
    """Messages a row, the system prompt counted."""
    basis: str
    """How tokens were counted: by which tokenizer, or with how many characters a token."""
    languages: dict[str, float] = {}
    """Language (or script where the language is not told) -> share of the rows looked at."""
    structure: dict[str, float] = {}
    """``json-answers``, ``code-answers``, ``tools``, ``system``, ``multi-turn``... -> share of the rows."""
    labels: dict[str, int] = {}
    """Distinct short answers -> rows, where answers repeat like labels."""
    sampled: int
    """Rows that were looked at for tokens, languages and structure."""


class Finding(Record):
    """One thing found in the data, with where and what to do."""

    level: Literal["error", "warning", "info"]
    code: str
    """Stable short name: ``broken-row``, ``empty-answer``, ``duplicate``, ``leakage``..."""
    message: str
    count: int = 1
    """Rows concerned."""
    file: str | None = None
    line: int | None = None
    """Line of the first row concerned."""
    lines: tuple[str, ...] = ()
    """``file:line`` of the first few rows concerned."""
    sample: str | None = None
    """A piece of the first row concerned."""
    fix: str | None = None
    """What to do."""


class CheckReport(Record):
    """Outcome of a data check: ``read = kept + sum(dropped)``."""

    files: tuple[str, ...]
    format: str
    read: int
    kept: int
    dropped: dict[str, int] = {}
    """Reason -> rows that cannot be trained on."""
    findings: tuple[Finding, ...] = ()
    tokens: Lengths | None = None
    """Tokens a row where a tokenizer was given."""
    histogram: tuple[tuple[int, int], ...] = Field(())
    """(upper length, rows) pairs, lengths doubling."""
    seconds: float = 0.0
    megabytes: float = 0.0
    """Bytes read (uncompressed) / 1e6."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.level == "error")


class MiningReport(Record):
    """What was mined, and what was left out on the way."""

    files: tuple[str, ...]
    queries: int
    corpus: int
    """Texts that negatives were chosen from."""
    negatives: int
    short: int
    """Queries with fewer negatives than asked for."""
    left_out: dict[str, int] = {}
    """Reason -> texts looked at and not taken."""
    notes: tuple[str, ...] = ()
    by: str
    """What compared the texts."""
    out: str | None = None


class FilePart(Record):
    """One written part of a split."""

    name: str
    rows: int
    groups: int
    """Groups of rows that stay together."""
    labels: dict[str, int] = {}
    """Label -> rows, where rows have labels."""
    path: str | None = None
    """None in a dry run."""


class FileSplitReport(Record):
    """How files were parted: ``read = sum(part.rows)``."""

    files: tuple[str, ...]
    read: int
    parts: tuple[FilePart, ...]
    seed: int
    stratified_by: str | None = None
    """Column or kind of label whose shares are kept."""
    grouped_by: str | None = None
    together: dict[str, int] = {}
    """Reason -> rows that stand with an earlier one for it: equal, equal prompt, nearly equal, one group."""
    notes: tuple[str, ...] = ()


class NotCarried(Record):
    """A key of another trainer's configuration that a recipe does not carry."""

    key: str
    value: str
    line: int | None = None
    reason: str


class ImportReport(Record):
    """What became of every key of another trainer's configuration."""

    file: str
    tool: str
    """Whose configuration it is."""
    carried: dict[str, str] = {}
    """Key of the recipe -> key and line that it came from."""
    not_carried: tuple[NotCarried, ...] = ()
    same: tuple[str, ...] = ()
    """Keys that ask for what is done anyway, or switch off what is not done."""
    empty: tuple[str, ...] = ()
    """Keys without a value."""
    missing: tuple[str, ...] = ()
    """What has to be filled in before a training."""
    notes: tuple[str, ...] = ()
    out: str | None = None


class DatasetVersion(Record):
    """One immutable version of a named data set."""

    name: str
    version: str
    """First 12 digits of the SHA-256 over all that follows but the date."""
    created: str
    """ISO 8601, UTC."""
    purpose: str
    sources: dict[str, tuple[tuple[str, str], ...]]
    """Split -> (file as shown, SHA-256 of its content); ``train`` holds the rows that splits are cut from."""
    mapping: dict[str, object] = {}
    """What the recipe says of reading: format, columns, system prompt, delimiter, weights."""
    fixes: tuple[str, ...] = ()
    """What was done to the rows before, as `luthier data check --fix` or a person says it."""
    seed: int
    shares: dict[str, float] = {}
    """Held-out split -> share cut from train."""
    rows: dict[str, int]
    """Split -> rows."""
    leaks: dict[str, int] = {}
    """``version/split`` of an earlier version -> its rows that stand in this version's train."""

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"


class VersionDiff(Record):
    """Rows of one version against an earlier one."""

    old: str
    new: str
    added: int
    removed: int
    changed: int
    """Rows whose prompt (query, text) stood in the old version with another answer (texts, label)."""
    kept: int
    moved: int = 0
    """Kept rows that are in another split now."""
    samples: dict[str, tuple[str, ...]] = {}
    """``added``, ``removed``, ``changed``, ``moved`` -> ``file:line`` of the first few."""
    leaks: dict[str, int] = {}
    """Held-out split of the old version -> its rows that stand in the new version's train."""
