"""Texts turned round at the marks that a model has for it, so that it learns to fill a gap in them.

A text is cut at two places drawn evenly over its characters; the middle moves to the end, behind what stood
before and after it (Bavarian et al. 2022, arXiv 2207.14255). The model must know marks for the three parts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from luthier.data.fit import is_text
from luthier.errors import Unsupported
from luthier.schema.protocols import ChatRow, TextTokenizer


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands before each of the three parts."""

    before: str
    after: str
    middle: str
    after_first: bool = False
    """Whether what follows the gap is written before what precedes it."""

    def prompt(self, before: str, after: str) -> str:
        """What a model is given to write the middle of."""
        first, second = self.before + before, self.after + after
        return (second + first if self.after_first else first + second) + self.middle


MARKS = (
    # Qwen2.5-Coder, Qwen3-Coder and CodeGemma
    Marks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    # StarCoder, StarCoder2 and Granite Code
    Marks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    # SantaCoder
    Marks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    # Seed-Coder
    Marks("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", after_first=True),
    # DeepSeek-Coder
    Marks("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    # Code Llama
    Marks("▁<PRE>", "▁<SUF>", "▁<MID>"),
)


def marks_of(tokenizer: TextTokenizer) -> Marks:
    """The marks that a tokenizer has as single tokens. Raises Unsupported where it has none."""
    for marks in MARKS:
        if all(len(tokenizer.encode(mark)) == 1 for mark in (marks.before, marks.after, marks.middle)):
            return marks
    raise Unsupported(
        "the model's tokenizer has no marks for a gap in a text (fim_prefix, fim_suffix, fim_middle)",
        hint="leave data.fim_rate out, or choose a code model that has them: Qwen2.5-Coder, Seed-Coder",
    )


@dataclass(frozen=True, slots=True)
class Infill:
    """Which texts are turned round, the same wherever and whenever it is asked."""

    marks: Marks
    rate: float
    """Share of the texts."""
    seed: int
    limit: int | None
    """Longest sequence in tokens: texts that are cut into several stay as they are."""

    def __call__(self, row: ChatRow, tokenizer: TextTokenizer) -> ChatRow:
        """The row, or its text turned round. Conversations stay as they are."""
        if not is_text(row):
            return row
        draw = random.Random(f"fim {self.seed} {row.id}")
        if draw.random() >= self.rate:
            return row
        text = str(row.messages[0]["content"])
        start, end = sorted((draw.randint(0, len(text)), draw.randint(0, len(text))))
        turned = self.marks.prompt(text[:start], text[end:]) + text[start:end]
        if self.limit is not None and len(tokenizer.encode(turned)) >= self.limit:
            return row
        return replace(row, messages=[{**row.messages[0], "content": turned}])


def infill_of(rate: float, seed: int, tokenizer: TextTokenizer, limit: int | None) -> Infill | None:
    """What a recipe asks for, None for nothing. Raises Unsupported for a model without marks."""
    return Infill(marks_of(tokenizer), rate, seed, limit) if rate else None
