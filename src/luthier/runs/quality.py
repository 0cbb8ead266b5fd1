"""What each quantisation costs: the run's own metric on its own held-out rows, beside the trained model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from luthier.data.messages import RowProblem
from luthier.data.render import prompt_ids, prompt_of, render_row
from luthier.data.splits import choose
from luthier.evaluation.compare import compare
from luthier.evaluation.exported import quality_of
from luthier.evaluation.generation import evaluate, questions, restricted
from luthier.hub.cache import room
from luthier.llamacpp.runtime import GgufGenerator, LlamaServer, ServerSettings
from luthier.runs.stages import load_results
from luthier.schema.results import Artifact
from luthier.schema.rows import PreferenceChat

if TYPE_CHECKING:
    from luthier.runs.workflow import Work
    from luthier.schema.protocols import ChatRow

SLOTS = 4
PERPLEXITY_TOKENS = 512
"""Tokens of expected answers that a file's perplexity is taken over; each costs a request."""


class QualityJudge:
    """Judges the GGUF files of one run on the same rows. Held by the ship stage.

    Rows: up to ``most`` of the first held-out split that base and tuned model were judged on.
    """

    def __init__(self, work: Work, most: int) -> None:
        self.work = work
        self.rows: Sequence[ChatRow] = ()
        baseline, tuned = load_results(work.run, "baseline"), load_results(work.run, "tuned")
        judged = [name for name in work.tests if name in tuned and name in baseline]
        # A file's likelihood of two given answers is not asked for: only answers are compared.
        split = next((name for name in judged if not isinstance(work.tests[name][0], PreferenceChat)), None)
        if split is None or most == 0:
            return
        rows = work.tests[split]
        self.split = split
        self.rows = choose(rows, min(most, len(rows)), seed=work.recipe.seed)
        asked = [question.id for question in questions(self.rows)]
        self.baseline, self.tuned = restricted(baseline[split], asked), restricted(tuned[split], asked)
        self.gain = compare(self.baseline, self.tuned)

    def __call__(self, artifact: Artifact) -> Artifact:
        """The artifact with its quality, or as it was where nothing was held out."""
        if not self.rows:
            return artifact
        work, longest = self.work, self.work.recipe.evaluation.max_new_tokens
        prompt = max(len(prompt_ids(prompt_of(row), work.tokenizer, row.tools)) for row in self.rows)
        given = [one for row in self.rows if (one := self._given(row)) is not None]
        answer = max((len(asked) + len(said) for asked, said in given), default=0)
        context = max(prompt + longest, answer) + 8
        settings = ServerSettings(context=context, slots=min(SLOTS, len(self.rows)))
        with LlamaServer(work.run.path / artifact.path, settings) as server:
            generator = GgufGenerator(server, artifact.kind, artifact.sha256)
            judged = evaluate(
                generator,
                self.rows,
                split=self.split,
                metrics=tuple(self.tuned.metrics),
                max_new_tokens=longest,
                progress=work.board.progress("ship", f"{artifact.kind} on {self.split}"),
                cache_dir=room("answers"),
            )
            speed = generator.tokens_per_second if generator.tokens else None
            perplexity = _perplexity(server, given)
        quality = quality_of(self.gain, self.tuned, judged, speed, perplexity)
        return artifact.model_copy(update={"quality": quality})

    def _given(self, row: ChatRow) -> tuple[list[int], list[int]] | None:
        """Token ids of a row's prompt and of its expected answer; None where they lie otherwise."""
        tokenizer = self.work.tokenizer
        asked = prompt_ids(prompt_of(row), tokenizer, row.tools)
        try:
            rendered = render_row(row, tokenizer)
        except RowProblem:  # an answer that the template cannot write is still judged by what is said
            return None
        whole, answered = rendered.ids.tolist(), np.flatnonzero(rendered.trained)
        if not len(answered) or whole[: len(asked)] != asked:
            return None
        return asked, whole[len(asked) : int(answered[-1]) + 1]


def _perplexity(server: LlamaServer, given: Sequence[tuple[list[int], list[int]]]) -> float | None:
    """Of the expected answers, over the first rows that make up PERPLEXITY_TOKENS."""
    nats: list[float] = []
    for asked, said in given:
        if len(nats) >= PERPLEXITY_TOKENS:
            break
        nats += [one for one in server.nats_of(asked, said) if one is not None]
    return math.exp(sum(nats) / len(nats)) if nats else None
