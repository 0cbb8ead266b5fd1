"""Does an exported GGUF answer like the trained model? Prompt ids, greedy tokens, stop, divergence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from luthier.checks.parity_cause import why_prompts_differ
from luthier.checks.parity_prompts import PromptCase
from luthier.errors import DataError, UsageError
from luthier.llamacpp.runtime import Choice, Completion, GgufGenerator, LlamaServer
from luthier.schema.protocols import Progress, TextTokenizer
from luthier.schema.results import ParityCheck

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEAR_TIE = 0.05
"""Nats. Where the trained model's best token leads the second by less, either may win after rounding."""
TOP = 100
"""Likeliest tokens of the trained model that the divergence is taken over, the rest as one bucket."""
ASKED = 200
"""Likeliest tokens asked of llama.cpp, so that those of the trained model are among them."""
BROKEN = 0.5
"""Nats of mean KL beyond which a quantised model is broken, not quantised (SmolLM2-135M in Q4_K_M: 0.05)."""
SUSPECT = 0.05
"""Nats beyond which it is broken if it also picks the trained model's token less than half the time."""
DATE = re.compile(r"\b\d{2} [A-Z][a-z]{2} \d{4}\b")
"""A date as Llama 3's templates print it, which llama.cpp tells that of the day."""
EXACT = ("F32", "F16", "BF16")
"""Types that must give the trained model's own greedy tokens."""


class Greedy(Protocol):
    """One greedy continuation."""

    @property
    def ids(self) -> Sequence[int]:
        """New tokens, without the end token."""

    @property
    def stopped(self) -> bool:
        """Whether an end token came."""

    @property
    def gaps(self) -> Sequence[float]:
        """Lead of the best token over the second in nats, beyond what its type rounds away, for each token
        and the end token.
        """


class Reference(Protocol):
    """The trained model, in the process (``luthier.models.generate.TorchGenerator`` is one)."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """Its tokenizer and chat template."""

    def greedy(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, gaps: bool = False
    ) -> Sequence[Greedy]:
        """Greedy continuations of token ids, in the order of prompts."""

    def log_probs(self, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        """Log-probabilities of the token that follows each position: [positions, vocab]."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the trained model reads and says for one prompt.

    top_ids, top_log_probs: [tokens, TOP], the likeliest tokens at each generated place, best first.
    """

    case: PromptCase
    text: str
    ids: tuple[int, ...]
    answer: tuple[int, ...]
    """Greedy tokens; the end token is not among them."""
    stopped: bool
    gaps: tuple[float, ...]
    top_ids: NDArray[np.int64]
    top_log_probs: NDArray[np.float64]
    end: int | None
    """The token that ends a turn in this model's template; None where it has none."""

    @property
    def places(self) -> int:
        """Generated places: the answer's tokens, and the end token where one came."""
        return len(self.answer) + self.stopped


def expect(
    reference: Reference,
    cases: Sequence[PromptCase],
    *,
    tokenizer: TextTokenizer | None = None,
    max_new_tokens: int = 32,
    progress: Progress | None = None,
) -> list[Expected]:
    """Ask the trained model once; the answers serve for every export.

    tokenizer: what renders the prompts, where it is not the model's own (a template that prints the date
    must be told that of the check). Errors: DataError where the template refuses a chat.
    """
    tokenizer = tokenizer or reference.tokenizer
    texts = [tokenizer.render(case.messages, tools=case.tools, add_generation_prompt=True) for case in cases]
    prompts = [tokenizer.encode(text) for text in texts]
    answers = reference.greedy(prompts, max_new_tokens=max_new_tokens, gaps=True)
    expected = []
    for index, (case, text, ids, answer) in enumerate(zip(cases, texts, prompts, answers, strict=True)):
        places = len(answer.ids) + answer.stopped
        whole = [*ids, *answer.ids]
        table = reference.log_probs(whole, range(len(ids) - 1, len(ids) - 1 + places))
        best = np.argsort(-table, axis=1, kind="stable")[:, :TOP]
        expected.append(
            Expected(
                case=case,
                text=text,
                ids=tuple(ids),
                answer=tuple(answer.ids),
                stopped=answer.stopped,
                gaps=tuple(answer.gaps),
                top_ids=best.astype(np.int64),
                top_log_probs=np.take_along_axis(table, best, axis=1).astype(np.float64),
                end=_turn_end(tokenizer, case, text),
            )
        )
        if progress is not None:
            progress(index + 1, len(cases))
    return expected


def needed_context(expected: Sequence[Expected]) -> int:
    """Tokens that a server's slot must hold for :func:`check_parity`."""
    return max((len(one.ids) + one.places for one in expected), default=0) + 8


def _turn_end(tokenizer: TextTokenizer, case: PromptCase, prompt: str) -> int | None:
    """The end token that the template writes after an assistant turn."""
    turn = {"role": "assistant", "content": "Yes"}
    try:
        text = tokenizer.render([*case.messages, turn], tools=case.tools)
    except DataError:
        return None
    start = len(prompt) if text.startswith(prompt) else text.rfind("Yes")
    return next((token for token in tokenizer.encode(text[start:]) if token in tokenizer.eos_ids), None)


@dataclass
class _Tally:
    """Counts over prompts."""

    equal_ids: int = 0
    compared: int = 0
    equal: int = 0
    near_ties: int = 0
    stops: bool = True
    divergences: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)


def check_parity(
    expected: Sequence[Expected],
    found: GgufGenerator,
    *,
    exact: bool | None = None,
    near_tie: float = NEAR_TIE,
    divergence: bool = True,
    progress: Progress | None = None,
) -> ParityCheck:
    """Hold a served GGUF to what the trained model said (:func:`expect`).

    Always: prompt ids equal, and the end of turn ends generation. exact (by default for F32, F16 and
    BF16): greedy tokens equal up to the first place where the trained model itself was undecided.
    Otherwise the share of places at which it picks the trained model's token, given the same text
    before it, is reported; only a model that is plainly damaged fails. divergence: compute the mean KL
    over every generated place. Errors: Unreachable when the server dies.
    """
    if exact is None:
        exact = found.label.rpartition(":")[2] in EXACT
    server, tally = found.server, _Tally()
    _check_stop(expected, server, tally)
    for index, one in enumerate(expected):
        if _check_prompt(one, server, tally):
            _check_answer(one, server, tally, exact=exact, near_tie=near_tie, divergence=divergence)
        if progress is not None:
            progress(index + 1, len(expected))
    mean_kl = float(np.mean(tally.divergences)) if tally.divergences else None
    if not exact and mean_kl is not None and _broken(mean_kl, tally):
        tally.problem(
            f"is {mean_kl:.2f} nats away from the trained model on average and picks its token at "
            f"{tally.equal} of {tally.compared} places; probable cause: damaged weights, or another model's"
        )
    return ParityCheck(
        prompts=len(expected),
        equal_token_ids=tally.equal_ids,
        compared_tokens=tally.compared,
        equal_tokens=tally.equal,
        near_ties=tally.near_ties,
        mean_kl=mean_kl,
        stops=tally.stops,
        passed=not tally.problems,
        problems=tuple(tally.problems),
        notes=tuple(dict.fromkeys(tally.notes)),
    )


def _broken(mean_kl: float, tally: _Tally) -> bool:
    """A flat random model may pick other tokens at next to no divergence; a useful one does not."""
    return not mean_kl <= BROKEN or (mean_kl > SUSPECT and 2 * tally.equal < tally.compared)


def _check_stop(expected: Sequence[Expected], server: LlamaServer, tally: _Tally) -> None:
    """Force each end-of-turn token once: it must end generation."""
    ends: dict[int, Expected] = {}
    for one in expected:
        if one.end is not None:
            ends.setdefault(one.end, one)
    for token, one in ends.items():
        if not server.complete(one.ids, 2, bias=((token, 1e4),)).stopped:
            tally.stops = False
            tally.problem(
                f"token {token} {server.detokenize([token])!r} ends a turn of the trained model and does not "
                "end generation in llama.cpp; probable cause: missing EOS (tokenizer.ggml.eos_token_id or "
                "eot_token_id names another token)"
            )
    if not ends:
        tally.problem(
            "the chat template ends an assistant turn with none of the model's end tokens; probable cause: "
            "missing EOS in the template or in generation_config.json"
        )
        tally.stops = False


def _check_prompt(one: Expected, server: LlamaServer, tally: _Tally) -> bool:
    """Whether llama.cpp feeds the model the same token ids."""
    name = one.case.name
    try:
        text = server.apply_template(one.case.messages, one.case.tools)
        if text != one.text and (date := date_told(one.text, one.case, server)) is not None:
            text = one.text
            tally.notes.append(
                f"the chat template prints a date: {date} in training, that of the day in llama.cpp"
            )
        ids = server.tokenize(text)
    except UsageError as error:
        tally.problem(f"{name}: {error.message}; probable cause: the chat template")
        return False
    why = why_prompts_differ(
        expected_text=one.text, expected=one.ids, found_text=text, found=ids, show=server.detokenize
    )
    if why is not None:
        tally.problem(f"{name}: {why}")
        return False
    tally.equal_ids += 1
    return True


def date_told(text: str, case: PromptCase, server: LlamaServer) -> str | None:
    """The date that llama.cpp must tell a file's template to write this very prompt; None where none does.

    None too where it writes it without being told any.
    """
    if server.apply_template(case.messages, case.tools) == text:
        return None
    asked = " ".join(str(message.get("content", "")) for message in case.messages)
    for date in dict.fromkeys(DATE.findall(text)):
        told = date not in asked
        if told and server.apply_template(case.messages, case.tools, date=date) == text:
            return str(date)
    return None


def _check_answer(
    one: Expected, server: LlamaServer, tally: _Tally, *, exact: bool, near_tie: float, divergence: bool
) -> None:
    top = ASKED if divergence else 1
    answer = server.complete(one.ids, max(one.places, 1), top=top)
    said = _picked(answer)
    wanted = [*one.answer, None] if one.stopped else list(one.answer)
    parted = next((i for i, token in enumerate(wanted) if i >= len(said) or said[i] != token), None)
    agreed = len(wanted) if parted is None else parted
    tally.compared += agreed
    tally.equal += agreed
    choices = list(answer.choices[: agreed + 1])
    if parted is not None:
        near = one.gaps[parted] < near_tie
        tally.near_ties += near
        if not exact:
            choices = _follow(one, server, tally, choices, start=parted, top=top)
        elif not near:
            tally.compared += 1
            tally.problem(_mismatch(one, said, parted, server))
            if one.stopped and parted == len(one.answer):
                tally.stops = False
    if divergence:
        for place, choice in enumerate(choices[: one.places]):
            if choice is None:
                continue
            tally.divergences.append(_divergence(one.top_ids[place], one.top_log_probs[place], choice))


def _picked(answer: Completion) -> list[int | None]:
    """Tokens as they came; None for the end token."""
    return [*answer.tokens, None] if answer.stopped else list(answer.tokens)


def _follow(
    one: Expected, server: LlamaServer, tally: _Tally, choices: list[Choice | None], *, start: int, top: int
) -> list[Choice | None]:
    """Go on along the trained model's own answer after the first other token, one place at a time."""
    kept = choices[:start]
    for place in range(start, one.places):
        step = server.complete([*one.ids, *one.answer[:place]], 1, top=top, reuse=True)
        token = None if step.stopped else next(iter(step.tokens), None)
        tally.compared += 1
        tally.equal += token == (one.answer[place] if place < len(one.answer) else None)
        kept.append(step.choices[0] if step.choices else None)
    return kept


def _mismatch(one: Expected, said: list[int | None], place: int, server: LlamaServer) -> str:
    def name(tokens: Sequence[int | None]) -> str:
        if place >= len(tokens):
            return "nothing"
        token = tokens[place]
        return "the end" if token is None else f"{token} {server.detokenize([token])!r}"

    wanted: list[int | None] = [*one.answer, None]
    before = server.detokenize(one.answer[max(0, place - 4) : place])
    cause = (
        "missing EOS: generation goes on where the trained model stops"
        if one.stopped and place == len(one.answer)
        else "the weights or the architecture's settings differ (norm, rope, scale), not the prompt"
    )
    return (
        f"{one.case.name}: answer token {place} is {name(said)}, the trained model says {name(wanted)} with "
        f"a lead of {one.gaps[place]:.2f} nats, after {before!r}; probable cause: {cause}"
    )


def _divergence(ids: NDArray[np.int64], log_probs: NDArray[np.float64], choice: Choice) -> float:
    """KL(trained || found) in nats over the trained model's top tokens that both name, and the rest.

    Merging tokens into one bucket can only lower it.
    """
    found = dict(choice.top)
    shared = [(p, found[int(token)]) for token, p in zip(ids, log_probs, strict=True) if int(token) in found]
    if not shared:
        return float("inf")
    p, q = np.exp(np.array([s[0] for s in shared])), np.exp(np.array([s[1] for s in shared]))
    total = float(np.sum(p * (np.log(p) - np.log(q))))
    rest_p, rest_q = max(1.0 - float(p.sum()), 1e-12), max(1.0 - float(q.sum()), 1e-12)
    return max(0.0, total + rest_p * float(np.log(rest_p / rest_q)))
