"""A model behind an OpenAI-compatible endpoint, as a Generator."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from luthier.errors import Unreachable, Unsupported, UsageError
from luthier.schema.protocols import Generated, Likelihood, Message, Progress, plain_text

AT_ONCE = 8
TRIES = 5


@dataclass
class Used:
    """Tokens that the server says it has read and written for us."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    told: bool = False
    """Whether it says so at all."""

    def add(self, usage: object) -> None:
        """Count one answer."""
        if isinstance(usage, dict):
            self.told = True
            self.prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.completion_tokens += int(usage.get("completion_tokens") or 0)


class Endpoint:
    """Greedy answers of a served model. Use as a context manager.

    address: up to and with ``/v1``. text_of: writes a message, its calls too, as held-out answers are
    written. model: by name; the only one there when not given. Busy and failed
    answers are asked for again, waiting longer each time. Errors: Unreachable, UsageError for what the
    server refuses.
    """

    def __init__(
        self,
        address: str,
        *,
        text_of: Callable[[Message], str],
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 300.0,
    ) -> None:
        self._text_of = text_of
        self.address = address.rstrip("/")
        self._http = httpx2.Client(
            base_url=self.address,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(timeout, connect=10),
        )
        self.used = Used()
        self.model = model or self._only_one()
        self.label = f"{self.model} at {urlsplit(self.address).netloc}"
        # Weights behind an address may change without notice: this names who answered, and is no digest
        # of weights, so answers are not kept under it.
        self.weights_digest = hashlib.sha256(f"{self.address}\n{self.model}".encode()).hexdigest()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _only_one(self) -> str:
        names = [str(one["id"]) for one in self._ask("GET", "/models", None)["data"]]
        if len(names) != 1:
            raise UsageError(
                f"{self.address} serves {len(names)} models", hint=f"name one: {', '.join(names[:20])}"
            )
        return names[0]

    def generate(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Sequence[dict[str, Any]] | None] | None = None,
        max_new_tokens: int,
        progress: Progress | None = None,
    ) -> list[Generated]:
        """Greedy answers in the order of chats, a few at a time."""

        def answer(index: int) -> tuple[Generated, object]:
            if (text := plain_text(chats[index])) is not None:
                plain = {"model": self.model, "prompt": text, "temperature": 0, "max_tokens": max_new_tokens}
                told = self._ask("POST", "/completions", plain)
                given = told["choices"][0]
                ended = given.get("finish_reason") != "length"
                return Generated(str(given["text"]), (), ended), told.get("usage")
            offered = None if tools is None else tools[index]
            whole = self.chat(chats[index], tools=offered, max_new_tokens=max_new_tokens)
            found = whole["choices"][0]
            stopped = found.get("finish_reason") != "length"
            return Generated(self._text_of(found["message"]), (), stopped), whole.get("usage")

        answers: list[Generated] = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                for done, (found, usage) in enumerate(pool.map(answer, range(len(chats))), 1):
                    answers.append(found)
                    self.used.add(usage)
                    if progress is not None:
                        progress(done, len(chats))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return answers

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        max_new_tokens: int,
    ) -> dict[str, Any]:
        """One greedy answer, as the server gives it."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": max_new_tokens,
        }
        if tools:
            body["tools"] = list(tools)
        found: dict[str, Any] = self._ask("POST", "/chat/completions", body)
        return found

    def score(
        self, pairs: Sequence[tuple[str, str]], *, progress: Progress | None = None
    ) -> list[Likelihood]:
        """Likelihood of each continuation after its context, where the server tells those of a prompt.

        Asked through ``/completions`` with ``echo`` and ``logprobs``, as vLLM and others take it.
        Errors: Unsupported where it does not.
        """

        def one(pair: tuple[str, str]) -> Likelihood:
            context, rest = pair
            context, rest = context.rstrip(), context[len(context.rstrip()) :] + rest
            body = {
                "model": self.model,
                "prompt": context + rest,
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": 1,
                "echo": True,
            }
            try:
                told = self._ask("POST", "/completions", body)["choices"][0].get("logprobs") or {}
                return _likelihood(told, len(context), len(context + rest))
            except (UsageError, KeyError, TypeError, IndexError, ValueError) as error:
                raise Unsupported(
                    f"{self.address} tells no log-probabilities of a prompt, which this is judged by "
                    f"({type(error).__name__}: {error})",
                    hint="serve it with vLLM, or judge the model's folder",
                ) from error

        found: list[Likelihood] = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                for done, likelihood in enumerate(pool.map(one, pairs), 1):
                    found.append(likelihood)
                    if progress is not None:
                        progress(done, len(pairs))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return found

    def _ask(self, verb: str, path: str, body: dict[str, Any] | None) -> Any:
        trouble = ""
        for tried in range(TRIES):
            if tried:
                time.sleep(min(30.0, 0.5 * 2**tried))
            try:
                response = self._http.request(verb, path, json=body)
            except httpx2.HTTPError as error:
                trouble = type(error).__name__
                if isinstance(error, httpx2.ConnectError):
                    break
                continue
            if response.is_success:
                try:
                    return response.json()
                except ValueError:
                    raise Unreachable(
                        f"{self.address} answered with something else than JSON",
                        hint="give the address up to and with /v1",
                    ) from None
            trouble = f"{response.status_code}: {_words(response)}"
            if response.status_code not in (408, 409, 429) and response.status_code < 500:
                hint = "set OPENAI_API_KEY" if response.status_code in (401, 403) else None
                raise UsageError(f"{self.address} refused the request ({trouble})", hint=hint)
        raise Unreachable(
            f"{self.address} did not answer ({trouble})", hint="is the server up, and the address with /v1?"
        )


def _likelihood(told: dict[str, Any], start: int, end: int) -> Likelihood:
    """The part of a prompt's tokens that begin within [start, end) of its characters.

    The first token of a text has no probability and counts nothing.
    """
    nats, tokens, greedy = 0.0, 0, True
    tops = told.get("top_logprobs") or [None] * len(told["tokens"])
    for offset, log, top in zip(told["text_offset"], told["token_logprobs"], tops, strict=True):
        if start <= offset < end and log is not None:
            nats += float(log)
            tokens += 1
            greedy = greedy and (not top or log >= max(top.values()))
    if not tokens:
        raise ValueError("no token of the continuation was echoed")
    return Likelihood(nats, tokens, greedy)


def _words(response: httpx2.Response) -> str:
    try:
        return str(response.json()["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
