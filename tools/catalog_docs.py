"""Write the tables of docs/models.md, licences.md, recommend.md and hyperparameters.md from the catalogue.

Each table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; the words around it are written
by hand. ``python tools/catalog_docs.py`` rewrites them, ``--check`` only says which are out of date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from luthier.catalog.index import all_models, index, licences, model_card  # noqa: E402
from luthier.planning.estimate import estimate_candidate  # noqa: E402
from luthier.planning.hypothetical import parse_hardware  # noqa: E402
from luthier.planning.recommend.evidence import LADDERS, line_between, prior_for  # noqa: E402
from luthier.planning.recommend.guides import A_MEMORY, B_MEMORY, C_GPUS  # noqa: E402
from luthier.planning.recommend.methods import build_method  # noqa: E402
from luthier.planning.recommend.score import WEIGHTS  # noqa: E402
from luthier.planning.recommend.shapes import budget_of  # noqa: E402
from luthier.schema.model import ModelCard  # noqa: E402
from luthier.schema.plan import BatchShape  # noqa: E402
from luthier.schema.request import MethodName  # noqa: E402
from luthier.sizing.gguf import gguf_bytes  # noqa: E402

PAGES = ("models.md", "licences.md", "recommend.md", "hyperparameters.md")
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
GB = 1e9
A_MODELS = {
    3: "Llama-3.2-3B-Instruct", 7: "Qwen2.5-7B-Instruct", 8: "Llama-3.1-8B-Instruct", 9: "Qwen3.5-9B",
    11: "gemma-3-12b-it", 14: "Qwen2.5-14B-Instruct", 27: "gemma-3-27b-it", 32: "Qwen2.5-32B-Instruct",
}  # fmt: skip


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join('---' for _ in heads)}|"]
    lines += [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def count(number: int | None) -> str:
    if number is None:
        return "?"
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.0f}M"


def models_table() -> str:
    """Every model, grouped by what it is."""
    parts: list[str] = []
    titles = {
        "decoder": "Decoders", "vision-language": "Vision-language models", "encoder": "Encoders",
        "bi-encoder": "Embedders (bi-encoders)", "cross-encoder": "Rerankers (cross-encoders)",
    }  # fmt: skip
    for kind, title in titles.items():
        cards = [card for card in all_models() if card.kind == kind and card.added_from is None]
        parts.append(f"### {title}\n")
        parts.append(
            table(
                ("model", "parameters", "active", "context", "licence", "GGUF", "released"),
                (
                    (
                        f"`{card.id}`",
                        count(card.total),
                        count(card.parameters.active) if card.parameters.active else "",
                        "?" if card.context.native is None else f"{card.context.native:,}",
                        card.licence,
                        {True: "yes", False: "no", None: "?"}[card.gguf.supported],
                        card.release_date or "?",
                    )
                    for card in cards
                ),
            )
        )
    return "\n".join(parts)


def sources_table() -> str:
    return table(("key", "source"), index().sources.items())


def licences_table() -> str:
    """Terms side by side."""
    words = {True: "yes", False: "no", None: "not verified"}
    rows = []
    for terms in licences():
        models = sum(card.licence == terms.id for card in all_models() if card.added_from is None)
        name = f"[{terms.name}]({terms.url})" if terms.url else terms.name
        threshold = f"{terms.user_threshold:,}" if terms.user_threshold else ""
        rows.append(
            (
                f"`{terms.id}`", name, models, terms.commercial_use, threshold,
                words[terms.acceptable_use_policy], terms.may_train_others, terms.verified.replace("-", " "),
            )
        )  # fmt: skip
    heads = ("id", "licence", "models", "commercial use", "separate licence above", "use policy",
             "outputs may train others", "text")  # fmt: skip
    return table(heads, rows)


def duties_table() -> str:
    rows = [(f"`{terms.id}`", "; ".join(terms.duties) or "none known") for terms in licences()]
    return table(("licence", "what is asked when a tuned model is passed on or shown"), rows)


def clauses_table() -> str:
    rows = [(f"`{t.id}`", c.topic, c.where, c.says) for t in licences() for c in t.clauses]
    return table(("licence", "topic", "where", "what it says, in our words"), rows)


def need(card: ModelCard, name: MethodName, length: int, *, checkpointing: bool = True) -> float:
    """GB of one row of that length, AdamW, rank 16, on a card with room."""
    shape = BatchShape(
        micro_batch_size=1, batch_size=1, sequence_length=length, tokens_per_row=length, rows=1, epochs=1,
        checkpointing=checkpointing, dtype="bfloat16",
    )  # fmt: skip
    found = estimate_candidate(card, build_method(name, None, None), shape, parse_hardware("rtx 4090"))
    return found.process.expected / GB


def guide_a_table() -> str:
    """Guide A's memory to fine-tune beside ours."""
    rows = []
    for size, (qlora, lora) in A_MEMORY.items():
        card = model_card(A_MODELS[int(size)])
        rows.append(
            (
                f"{size:g}B", f"`{card.name}`", qlora,
                f"{need(card, 'qlora', 512):.1f}", f"{need(card, 'qlora', 2048):.1f}", lora,
                f"{need(card, 'lora', 512):.1f}", f"{need(card, 'lora', 2048):.1f}",
            )
        )  # fmt: skip
    heads = ("size", "computed for", "QLoRA, guide", "at 512 tokens", "at 2,048", "LoRA, guide",
             "at 512 tokens", "at 2,048")  # fmt: skip
    return table(heads, rows)


def guide_b_table() -> str:
    """Guide B's inference and training memory beside ours."""
    rows = []
    for name, model, fp16, q4, lora in B_MEMORY:
        card = model_card(model)
        assert card.architecture is not None
        assert card.total is not None
        rows.append(
            (
                name, f"`{card.name}`", fp16, f"{2 * card.total / GB:.1f}", q4,
                f"{gguf_bytes(card.architecture, 'Q4_K_M') / GB:.1f}", lora,
                f"{need(card, 'lora', 512):.1f}", f"{need(card, 'lora', 2048):.1f}",
            )
        )  # fmt: skip
    heads = ("guide's name", "is", "FP16, guide", "weights", "Q4, guide", "Q4_K_M file", "LoRA, guide",
             "at 512 tokens", "at 2,048")  # fmt: skip
    return table(heads, rows)


def guide_c_table() -> str:
    """Guide C's largest sizes by GPU memory beside the largest decoders that fit by our estimate."""
    dense = [
        card
        for card in all_models()
        if card.kind == "decoder" and card.architecture is not None and card.architecture.experts is None
    ]
    rows = []
    for row in C_GPUS:
        budget = budget_of(parse_hardware(f"vram {row.memory:g}GB")) / GB
        cells: list[object] = [f"{row.memory:g} GB", row.example]
        for name, claimed in (("full", row.full), ("lora", row.lora), ("qlora", row.qlora)):
            fitting = [
                card.total or 0
                for card in dense
                if need(card, name, 2048) <= budget  # type: ignore[arg-type]
            ]
            cells += [f"~{claimed:g}B", count(max(fitting, default=0)) if fitting else "none"]
        rows.append(cells)
    heads = ("GPU", "guide's example", "full SFT, guide", "computed", "LoRA, guide", "computed",
             "QLoRA, guide", "computed")  # fmt: skip
    return table(heads, rows)


def ladders_table() -> str:
    """Which benchmarks stand for which, by which lines."""
    rows = []
    for scale, ladder in LADDERS.items():
        target = ladder[0]
        rows.append((scale, f"{target[0]} ({target[1]})", "the scale itself", "", ""))
        for key in ladder[1:]:
            line = line_between(key, target)
            if line is not None:
                rows.append(
                    ("", f"{key[0]} ({key[1]})", f"{line.intercept:.1f} + {line.slope:.2f} x score",
                     line.pairs, f"{line.error:.1f}")
                )  # fmt: skip
        prior = prior_for(scale)
        if prior is not None:
            dated = f" + {prior.by_year:.1f} a year" if prior.by_year else ""
            rows.append(
                ("", "none: size and date", f"{prior.constant:.0f} + {prior.by_size:.1f} log10(N){dated}",
                 prior.models, f"{prior.error:.1f}")
            )  # fmt: skip
    return table(("purpose's scale", "published score", "converted by", "models", "standard error"), rows)


def weights_table() -> str:
    parts = ("quality", "speed", "size", "ecosystem")
    rows = [(name, *(f"{values[part]:g}" for part in parts)) for name, values in WEIGHTS.items()]
    return table(("priority", *parts), rows)


def hyperparameters_table() -> str:
    """The whole table, in the order that it is searched."""
    rows = []
    for row in index().hyperparameters:
        when = {k: v for k, v in row.when.model_dump(exclude_defaults=True).items() if v}
        words = "; ".join(f"{k.replace('_', ' ')}: {_words(v)}" for k, v in when.items()) or "always"
        rows.append((row.name, row.value, words, row.basis, row.source, row.others or ""))
    return table(("setting", "value", "when", "basis", "source", "others say"), rows)


def _words(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)


def ecosystem_table() -> str:
    rows = [
        (entry.family, f"{entry.points:g}", fact.text, fact.basis, fact.source, fact.date)
        for entry in index().ecosystem
        for fact in (*entry.facts, *entry.traits)
    ]
    return table(("family", "points", "statement", "basis", "source", "date"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "models": models_table,
    "sources": sources_table,
    "licences": licences_table,
    "duties": duties_table,
    "clauses": clauses_table,
    "guide-a": guide_a_table,
    "guide-b": guide_b_table,
    "guide-c": guide_c_table,
    "ladders": ladders_table,
    "weights": weights_table,
    "hyperparameters": hyperparameters_table,
    "ecosystem": ecosystem_table,
}


def render(text: str) -> str:
    """A page with its tables written anew."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{TABLES[m['name']]()}\n{m[3]}", text)


def main(words: Sequence[str]) -> int:
    """Rewrite the pages, or with --check say which differ."""
    stale = []
    for name in PAGES:
        path = ROOT / "docs" / name
        text = path.read_text(encoding="utf-8")
        fresh = render(text)
        if fresh != text:
            stale.append(name)
            if "--check" not in words:
                path.write_text(fresh, encoding="utf-8")
    print(f"{'out of date' if '--check' in words else 'written'}: {', '.join(stale) or 'nothing'}")
    return 1 if stale and "--check" in words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
