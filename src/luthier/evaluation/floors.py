"""What must be beaten for a tuning to be worth it: constant answers, copies, and prompting alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from luthier.errors import GateMissed, UsageError
from luthier.evaluation.generation import digest_of, questions, text_of
from luthier.schema.protocols import ChatRow, Generated, Message, Progress
from luthier.schema.results import Comparison, Difference


class Constant:
    """Answers every prompt with the same text: a Generator without a model."""

    def __init__(self, label: str, text: str) -> None:
        self.label = label
        self.weights_digest = ""
        self._text = text

    def generate(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Sequence[dict[str, Any]] | None] | None = None,  # noqa: ARG002
        max_new_tokens: int,  # noqa: ARG002
        progress: Progress | None = None,  # noqa: ARG002
    ) -> list[Generated]:
        """The text, once for each chat."""
        return [Generated(self._text, (), True) for _ in chats]


class Copy:
    """Answers with the last message as it stands: a Generator without a model."""

    label = "floor: copy of the prompt"
    weights_digest = ""

    def generate(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Sequence[dict[str, Any]] | None] | None = None,  # noqa: ARG002
        max_new_tokens: int,  # noqa: ARG002
        progress: Progress | None = None,  # noqa: ARG002
    ) -> list[Generated]:
        """Each chat's last message."""
        return [Generated(text_of(chat[-1]), (), True) for chat in chats]


def majority(train: Sequence[ChatRow]) -> Constant:
    """Answers with the commonest answer of the training rows (the first of them where several tie)."""
    answers = Counter(q.expected for q in questions(train))
    if not answers:
        raise UsageError("no training rows to take the commonest answer from", hint="name rows in data.train")
    text, count = answers.most_common(1)[0]
    return Constant(f"floor: commonest answer ({count} of {answers.total()} training rows)", text)


def few_shot(
    rows: Sequence[ChatRow], train: Sequence[ChatRow], *, examples: int = 3, seed: int = 17
) -> list[ChatRow]:
    """The rows with examples from train as earlier turns: what prompting alone can do.

    All rows get the same examples, chosen by seed, none of them a row that is judged. Examples carry no
    system prompt of their own; rows keep theirs at the front. Ids stay, so results pair with the others.
    """
    judged = {digest_of(row.messages) for row in rows}
    usable = [
        row
        for row in train
        if digest_of(row.messages) not in judged and not row.tools and row.messages[-1]["role"] == "assistant"
    ]
    if len(usable) < examples:
        raise UsageError(
            f"{examples} examples are asked for and {len(usable)} training rows can serve as one",
            hint="ask for fewer examples",
        )
    chosen = random.Random(seed).sample(usable, examples)
    shown = [m for row in chosen for m in row.messages if m["role"] != "system"]
    found = []
    for row in rows:
        head = [m for m in row.messages if m["role"] == "system"]
        rest = [m for m in row.messages if m["role"] != "system"]
        found.append(replace(row, messages=[*head, *shown, *rest]))
    return found


def check_gate(
    comparisons: Sequence[Comparison],
    *,
    min_delta: float | None = None,
    no_regression: bool = False,
    lost: Sequence[tuple[str, Difference]] = (),
) -> None:
    """Raise GateMissed unless every split gains at least min_delta and no metric is significantly worse.

    lost: what was asked beside the task and got worse beyond doubt (`probe.broken`): regressions too.

    min_delta is met when the primary metric's observed difference, turned so that more is better,
    reaches it and the verdict is better (min_delta above zero) or at least not worse.
    """
    missed = []
    for c in comparisons:
        main = c.main
        gain = main.delta.value if main.delta.greater_is_better else -main.delta.value
        if min_delta is not None:
            if gain < min_delta:
                missed.append(f"{c.split}: {main.metric} gained {gain:+.4g}, {min_delta:+.4g} is asked for")
            elif main.verdict == "worse" or (min_delta > 0 and main.verdict != "better"):
                missed.append(f"{c.split}: {main.metric} gained {gain:+.4g}, but not beyond doubt")
        if no_regression:
            worse = [d.metric for d in c.differences if d.verdict == "worse"]
            missed += [f"{c.split}: {metric} is worse than the baseline" for metric in worse]
    if no_regression:
        missed += [f"{split}: {difference.metric} is worse than the baseline" for split, difference in lost]
    if not comparisons:
        missed.append("nothing was compared")
    if missed:
        raise GateMissed(
            "; ".join(missed),
            hint="look at the regressed rows in the report; more or better training rows often help",
        )
