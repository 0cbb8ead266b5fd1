"""README.md of a tuned model: what it is, what it was measured at, how to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from luthier.exporting.licence_bundle import Provenance
from luthier.files import write_text
from luthier.schema.estimate import Estimate
from luthier.schema.recipe import Full, Lora, Purpose, QLora, Recipe
from luthier.schema.results import Artifact, Comparison, Metric, TrainResult

HUB_LICENCES = frozenset(
    ["apache-2.0", "mit", "cc-by-nc-4.0", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma"]
)
"""Licence ids of ours that the Hub knows by the same name (huggingface.co/docs/hub/repositories-licenses)."""

PIPELINES: dict[Purpose, str] = {
    "chat": "text-generation",
    "text-generation": "text-generation",
    "similarity": "sentence-similarity",
    "reranking": "text-ranking",
    "multi-label-classification": "text-classification",
    "multi-class-classification": "text-classification",
}


@dataclass(frozen=True)
class CardFacts:
    """All that a card says. Nothing in a card is invented: what is not known is left out."""

    name: str
    recipe: Recipe
    provenance: Provenance
    train: TrainResult | None = None
    comparisons: Sequence[Comparison] = ()
    artifacts: Sequence[Artifact] = ()
    data_summary: Mapping[str, str | int] = field(default_factory=dict)
    """Words -> figures on the data: rows, tokens, digest."""
    languages: Sequence[str] = ()
    estimate: Estimate | None = None
    files: Sequence[str] = ()
    """Names of the files that lie beside the card."""
    kind: str = "merged"
    """Which weights the card lies beside: ``merged``, ``adapter`` or ``gguf``."""
    hub_base: str | None = None
    """Hub id of the base, for the Hub's model tree; None where it came from elsewhere."""


def write_model_card(folder: Path, facts: CardFacts) -> Path:
    """Write README.md with metadata that the Hub reads."""
    return write_text(folder / "README.md", render_model_card(facts))


def render_model_card(facts: CardFacts) -> str:
    """The card's text: YAML front matter, then Markdown."""
    sections = [
        f"---\n{_front_matter(facts)}\n---",
        f"# {facts.name}",
        _opening(facts),
        _scores(facts),
        _exports(facts),
        _training(facts),
        _data(facts),
        _limits(facts),
        _licence(facts),
        _again(facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(facts: CardFacts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    licence = facts.provenance.licence
    terms: dict[str, Any] = {}
    if licence is not None and licence.id in HUB_LICENCES:
        terms["license"] = licence.id
    elif licence is not None:
        terms = {"license": "other", "license_name": licence.id}
        if licence.url:
            terms["license_link"] = licence.url
    if facts.hub_base:
        relation = {"adapter": "adapter", "gguf": "quantized"}.get(facts.kind, "finetune")
        terms |= {"base_model": facts.hub_base, "base_model_relation": relation}
    task = PIPELINES[facts.recipe.task]
    results = [
        EvalResult(
            task_type=task,
            dataset_type="private",
            dataset_name=comparison.split,
            dataset_split=comparison.split,  # what the Hub's format groups results by
            metric_type=difference.metric,
            metric_value=round(difference.tuned.value, 4),
        )
        for comparison in facts.comparisons
        for difference in comparison.differences
    ]
    libraries = {"adapter": "peft", "gguf": "gguf"}
    if results:
        terms |= {"eval_results": results, "model_name": facts.name}
    data = ModelCardData(
        language=list(facts.languages) or None,
        pipeline_tag=task,
        library_name=libraries.get(facts.kind, "transformers"),
        tags=["luthier", facts.recipe.method.name, *(["gguf"] if facts.kind == "gguf" else [])],
        **terms,
    )
    return data.to_yaml().strip()


def _opening(facts: CardFacts) -> str:
    revision = f" at revision `{facts.provenance.base_revision}`" if facts.provenance.base_revision else ""
    text = (
        f"`{facts.provenance.base_model}`{revision}, tuned for {facts.recipe.task} "
        f"with {_method(facts.recipe)}."
    )
    if facts.comparisons:
        text += " " + " ".join(_verdict(comparison) for comparison in facts.comparisons)
    return text


def _verdict(comparison: Comparison) -> str:
    main = comparison.main
    change = f"{main.delta.value:+.3f} [{main.delta.low:+.3f}, {main.delta.high:+.3f}]"
    return (
        f"On `{comparison.split}` ({main.tuned.n} held-out rows) the tuned model is **{comparison.verdict}** "
        f"than its base in {main.metric}: {change}."
        if comparison.verdict != "inconclusive"
        else f"On `{comparison.split}` ({main.tuned.n} held-out rows) the change in {main.metric} is "
        f"inconclusive: {change}."
    )


def _method(recipe: Recipe) -> str:
    match recipe.method:
        case QLora() as method:
            return f"QLoRA (rank {method.rank}, base in {method.quantisation})"
        case Lora() as method:
            extras = [name for name, on in (("rsLoRA", method.rslora), ("DoRA", method.dora)) if on]
            alpha = "" if method.alpha is None else f", alpha {method.alpha:g}"
            return f"LoRA (rank {method.rank}{alpha}{''.join(f', {name}' for name in extras)})"
        case Full() as method:
            return "full fine-tuning" + (f" (products in {method.products})" if method.products else "")


def _figure(metric: Metric) -> str:
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"


def _table_head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def _scores(facts: CardFacts) -> str:
    if not facts.comparisons:
        return ""
    rows = _table_head("split", "metric", "rows", "base", "tuned", "difference", "verdict")
    rows += [
        f"| {comparison.split} | {d.metric} | {d.tuned.n} | {_figure(d.baseline)} | {_figure(d.tuned)} | "
        f"{d.delta.value:+.3f} [{d.delta.low:+.3f}, {d.delta.high:+.3f}] | {d.verdict} |"
        for comparison in facts.comparisons
        for d in comparison.differences
    ]
    note = "Brackets are 95 % intervals over the held-out rows; base and tuned answered the same rows."
    return "## Scores\n\n" + "\n".join(rows) + f"\n\n{note}"


def _held_out(artifact: Artifact) -> str:
    quality = artifact.quality
    if quality is None:
        return ""
    score = quality.score
    perplexity = "" if quality.perplexity is None else f", perplexity {quality.perplexity:.3f}"
    return (
        f"{quality.metric} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}], "
        f"{quality.difference.value:+.3f} to the trained model ({score.n} rows)"
        f"{perplexity}"
    )


def _exports(facts: CardFacts) -> str:
    shown = [artifact for artifact in facts.artifacts if artifact.parity is not None]
    if not shown:
        return ""
    rows = _table_head(
        "file", "size", "prompts read alike", "same token", "mean KL", "check", "held-out score"
    )
    for artifact in shown:
        parity = artifact.parity
        assert parity is not None
        divergence = "" if parity.mean_kl is None else f"{parity.mean_kl:.4f}"
        share = f"{parity.equal_tokens}/{parity.compared_tokens}"
        rows.append(
            f"| {Path(artifact.path).name} | {artifact.bytes / 1e6:,.1f} MB | "
            f"{parity.equal_token_ids}/{parity.prompts} | {share} | {divergence} | "
            f"{'passed' if parity.passed else 'FAILED: ' + '; '.join(parity.problems)} | "
            f"{_held_out(artifact)} |"
        )
    note = (
        "Each file was loaded in llama.cpp and held to the trained model on the same prompts: token ids of "
        "the rendered prompt, greedy tokens (at 16 bits up to the first near-tie, below at every place given "
        "the same text before it), and the Kullback-Leibler divergence of the next token in nats."
    )
    return "## Exports\n\n" + "\n".join(rows) + f"\n\n{note}"


def _training(facts: CardFacts) -> str:
    train, recipe = facts.train, facts.recipe
    lines = [f"- method: {_method(recipe)}"]
    if train is not None:
        share = 100 * train.trainable_parameters / max(1, train.total_parameters)
        lines += [
            f"- trained parameters: {train.trainable_parameters:,} of {train.total_parameters:,} "
            f"({share:.2f} %)",
            f"- steps: {train.steps:,} ({train.epochs:g} epochs), {train.trained_tokens:,} trained tokens",
            f"- loss: {train.first_loss:.3f} at first, {train.last_loss:.3f} at last"
            + (
                f", best on validation {train.best_validation_loss:.3f} (step {train.best_step:,})"
                if train.best_validation_loss is not None
                else ""
            ),
            f"- on {train.device} in {train.dtype}: {train.seconds / 60:,.1f} min, "
            f"{train.peak_memory / 2**30:.2f} GiB at the peak",
        ]
    choices = recipe.training
    settings = [
        ("learning rate", choices.learning_rate),
        ("batch", choices.batch_size),
        ("sequence length", choices.sequence_length),
        ("schedule", choices.schedule),
        ("seed", recipe.seed),
    ]
    lines.append("- " + ", ".join(f"{name} {value}" for name, value in settings if value is not None))
    if new := recipe.model.new_tokens:
        first = (
            "; before PEFT reads this adapter: `base.resize_token_embeddings(len(tokenizer))`, with the "
            "tokenizer beside this card"
            if facts.kind == "adapter"
            else ""
        )
        lines.append(f"- new tokens: {', '.join(f'`{text}`' for text in new)}{first}")
    return "## Training\n\n" + "\n".join(lines)


def _data(facts: CardFacts) -> str:
    if not facts.data_summary:
        return ""
    return "## Data\n\n" + "\n".join(f"- {words}: {figure}" for words, figure in facts.data_summary.items())


def _limits(facts: CardFacts) -> str:
    lines = [
        "- Made for inputs like those of the held-out rows above; nothing was measured beyond them.",
        "- What the base model gets wrong, and its biases, can be expected here too.",
    ]
    if not facts.comparisons:
        lines[0] = "- No held-out rows were scored: how good it is has not been measured."
    return "## Intended use and limits\n\n" + "\n".join(lines)


def _licence(facts: CardFacts) -> str:
    licence = facts.provenance.licence
    if licence is None:
        return (
            "## Licence\n\nThe terms of the base model are not known; they hold for this model too. "
            "Find them out before you pass it on."
        )
    duties = "".join(f"\n- {duty}" for duty in licence.duties)
    name = f"[{licence.name}]({licence.url})" if licence.url else licence.name
    asked = f" It asks (information, not legal advice):\n{duties}" if duties else ""
    return f"## Licence\n\n{name}, as the base model.{asked}"


def _again(facts: CardFacts) -> str:
    from luthier.schema.load import dump_recipe

    recipe = dump_recipe(_shareable(facts)).strip()
    files = "" if not facts.files else "\n\nFiles: " + ", ".join(f"`{name}`" for name in facts.files) + "."
    return (
        f"## How to make it again\n\nWith Luthier{_version()}: `luthier train recipe.yaml`\n\n"
        f"```yaml\n{recipe}\n```{files}"
    )


def _version() -> str:
    try:
        return f" {metadata.version('luthier')}"
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return ""


def _shareable(facts: CardFacts) -> Recipe:
    """The recipe without the paths of the machine that it ran on."""
    recipe = facts.recipe

    def names(paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(Path(path).name for path in paths)

    data = recipe.data.model_copy(
        update={
            "train": names(recipe.data.train),
            "validation": names(recipe.data.validation),
            "test": {split: names(paths) for split, paths in recipe.data.test.items()},
        }
    )
    model = recipe.model.model_copy(update={"id": facts.provenance.base_model})
    return recipe.model_copy(update={"data": data, "model": model})
