"""Does a deployed endpoint read and answer as the exported file does, which was held to the trained model?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.checks.parity import date_told
from luthier.checks.parity_prompts import PromptCase
from luthier.errors import UsageError
from luthier.llamacpp.runtime import Completion, LlamaServer
from luthier.schema.protocols import Message, Progress, TextTokenizer
from luthier.schema.results import ParityCheck

UNDECIDED = 0.5
"""Nats of lead under which a place is not compared: what of a prompt is cached, and how many tokens go
through at once, moves leads of quantised files by up to 0.4 (SmolLM2-135M in Q4_K_M, 527 tokens)."""
SHOWN = 40
"""Characters of both answers around the first difference."""


@dataclass(frozen=True, slots=True)
class Said:
    """An endpoint's answer to one chat."""

    text: str
    stopped: bool
    """Whether the answer ended by itself."""
    prompt_tokens: int | None = None
    """Tokens of the prompt as the endpoint counts them; None where it does not say."""
    plain: bool = True
    """Whether the text is all that was written; not where calls of tools were taken out of it."""


Ask = Callable[[Sequence[Message], Sequence[dict[str, Any]] | None, int], Said]
"""messages, tools, most new tokens -> a greedy answer."""


def check_endpoint(
    tokenizer: TextTokenizer,
    cases: Sequence[PromptCase],
    file: LlamaServer,
    ask: Ask,
    *,
    max_new_tokens: int = 32,
    counts: bool = True,
    progress: Progress | None = None,
) -> ParityCheck:
    """Hold an endpoint to the exported file, which is fed the trained model's own token ids.

    tokenizer: the trained model's. file: the same file in llama.cpp, asked by token ids, past every chat
    template. ask: the endpoint. counts: whether its number of prompt tokens is of the whole prompt (some
    leave out what they have cached). Texts are compared up to the first place where the file itself was
    undecided, and tokens counted so far.
    """
    equal_ids = compared = equal = near_ties = 0
    problems: list[str] = []
    stops = True
    for index, case in enumerate(cases):
        try:
            ids = _prompt(tokenizer, case, file)
            direct = file.complete(ids, max_new_tokens, top=2)
            said = ask(case.messages, case.tools, max_new_tokens)
        except UsageError as error:
            problems.append(f"{case.name}: {error.message}; probable cause: another vocabulary or template")
            continue
        told = said.prompt_tokens is not None
        same_prompt = said.prompt_tokens == len(ids)
        sure = _decided(direct)
        near_ties += sure < len(direct.tokens)
        wanted = file.detokenize(direct.tokens[:sure]).rstrip("\ufffd").strip()
        same_text = not said.plain or said.text.strip().startswith(wanted)
        compared += sure
        equal += sure if same_text else 0
        whole = direct.stopped and sure == len(direct.tokens)
        if told and not same_prompt and (counts or not same_text):
            problems.append(
                f"{case.name}: the endpoint reads {said.prompt_tokens} tokens, the trained model {len(ids)}; "
                "probable cause: the chat template or a system prompt that the endpoint adds"
            )
        elif not same_text:
            problems.append(f"{case.name}: {_parted(wanted, said.text.strip())}")
        elif whole and not said.stopped:
            stops = False
            problems.append(
                f"{case.name}: the endpoint goes on where the file ends its answer; probable cause: missing "
                "EOS or stop in the deployment's settings"
            )
        else:
            equal_ids += 1
        if progress is not None:
            progress(index + 1, len(cases))
    return ParityCheck(
        prompts=len(cases),
        equal_token_ids=equal_ids,
        compared_tokens=compared,
        equal_tokens=equal,
        near_ties=near_ties,
        stops=stops,
        passed=not problems,
        problems=tuple(problems),
    )


def _prompt(tokenizer: TextTokenizer, case: PromptCase, file: LlamaServer) -> list[int]:
    """The trained model's own ids; where its template prints a date, as llama.cpp tells it."""
    text = tokenizer.render(case.messages, tools=case.tools, add_generation_prompt=True)
    if date_told(text, case, file) is not None:
        return file.tokenize(file.apply_template(case.messages, case.tools))
    return tokenizer.encode(text)


def _decided(direct: Completion) -> int:
    """Tokens before the first place where the lead of the best over the second is a small one."""
    for place, choice in enumerate(direct.choices[: len(direct.tokens)]):
        if choice is not None and len(choice.top) > 1 and choice.top[0][1] - choice.top[1][1] < UNDECIDED:
            return place
    return len(direct.tokens)


def _parted(wanted: str, found: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), None)
    at = min(len(wanted), len(found)) if at is None else at
    return (
        f"character {at} of the answer: {wanted[at : at + SHOWN]!r} in the file, "
        f"{found[at : at + SHOWN]!r} from the endpoint; probable cause: sampling settings, a system prompt "
        "or another file behind it"
    )
