"""A GGUF model served by llama.cpp in a child process, and a generator over it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import psutil

from luthier.errors import ToolchainError, Unreachable, UsageError
from luthier.files import file_sha256
from luthier.llamacpp.gguf_file import read_header
from luthier.llamacpp.process import OFFLINE, cores, end_tree, last_lines
from luthier.schema.protocols import Generated, Message, Progress, plain_text

GREEDY: dict[str, Any] = {"temperature": 0, "top_k": 1, "samplers": ["top_k"], "seed": 0}
"""Sampling settings under which the likeliest token wins, whatever defaults the file carries."""

_PASSIVE = {"OMP_WAIT_POLICY": "passive"}
"""Threads that wait sleep: spinning ones made llama.cpp up to 40 times slower beside other busy processes."""

_TINY = 1e-9
_FORCED = 1e4


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a model is served."""

    context: int = 4096
    """Tokens that each slot can hold."""
    slots: int = 1
    """Requests answered at the same time."""
    threads: int | None = None
    """CPU threads; None: the physical cores that this process may use."""
    gpu_layers: int = -1
    """Layers on a GPU, where llama.cpp was built for one; -1: all."""
    gpu: int | None = None
    """The only GPU that may be used; None: whatever llama.cpp takes."""
    embedding: bool = False
    adapters: tuple[tuple[str, float], ...] = ()
    """GGUF adapters with their scales."""
    alias: str | None = None
    """The name that the server goes by."""
    host: str = "127.0.0.1"
    port: int = 0
    """0: a free one."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One generated token and what else it could have been."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """Likeliest tokens with their log-probabilities (nats, over the whole vocabulary), best first."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer to a prompt."""

    text: str
    tokens: tuple[int, ...]
    """New tokens; an end token that ended it is not among them."""
    stopped: bool
    """True where an end token ended it."""
    choices: tuple[Choice | None, ...] = ()
    """One for each token, where asked for; the end token's own is last where one ended it. None where
    llama.cpp reports nothing: at tokens that are only a part of a character."""
    prompt_tokens: int = 0
    tokens_per_second: float | None = None


class LlamaServer:
    """llama.cpp's HTTP server over one GGUF file: loopback, random key, own process, time-limited.

    Use as a context manager. Errors: ToolchainError when the runtime is missing or the model does not
    load (with the last lines of its log), Unreachable when it dies or does not answer in time.
    """

    def __init__(
        self,
        model: Path,
        settings: ServerSettings | None = None,
        *,
        log: Path | None = None,
        start_timeout: float = 300.0,
        timeout: float = 600.0,
        api_key: str | None = None,
    ) -> None:
        self.model = model
        self.settings = settings or ServerSettings()
        self.log = log
        self.start_timeout = start_timeout
        self.timeout = timeout
        self.api_key = api_key or secrets.token_urlsafe(24)
        self.url = ""
        self.version = ""
        self._peak = 0
        self._child: subprocess.Popen[str] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> LlamaServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Load the model and wait until it answers."""
        if find_spec("xllamacpp") is None:
            raise ToolchainError(
                "llama.cpp's runtime is not installed", hint="pip install 'luthier[export]' (or xllamacpp)"
            )
        read_header(self.model)
        if self.log is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="luthier-llama-")
            self.log = Path(self._scratch.name) / "server.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        settings = {**asdict(self.settings), "model": str(self.model.resolve()), "api_key": self.api_key}
        settings["threads"] = self.settings.threads or cores()
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "luthier.llamacpp.server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**_PASSIVE, **os.environ, **OFFLINE, "GGML_NO_BACKTRACE": "1", **self._only_gpu()},
                text=True,
                # not in the terminal's group: Ctrl-C in a chat stops an answer, not the model
                start_new_session=True,
            )
        try:
            self._greet(self._child, json.dumps(settings))
            self._wait_until_healthy()
        except BaseException:
            self.close()
            raise

    def _only_gpu(self) -> dict[str, str]:
        return {} if self.settings.gpu is None else {"CUDA_VISIBLE_DEVICES": str(self.settings.gpu)}

    def _greet(self, child: subprocess.Popen[str], settings: str) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(settings + "\n")
            child.stdin.flush()
        late = threading.Event()

        def expire() -> None:
            late.set()
            end_tree(child.pid)

        clock = threading.Timer(self.start_timeout, expire)
        clock.daemon = True
        clock.start()
        line = child.stdout.readline()
        clock.cancel()
        answer = json.loads(line) if line.strip() else {}
        if "url" in answer:
            self.url, self.version = answer["url"], answer["version"]
            return
        if late.is_set():
            raise ToolchainError(
                f"{self.model.name} was not loaded within {self.start_timeout:,.0f} s", file=self.log
            )
        why = answer.get("error") or "llama.cpp ended while loading it"
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)  # what llama.cpp has said reaches the log when the process ends
        raise ToolchainError(
            f"{self.model.name} does not load: {why}",
            file=self.log,
            hint=f"the last lines of its log:\n{self.log_tail()}",
        )

    def _wait_until_healthy(self) -> None:
        until = time.monotonic() + self.start_timeout
        while True:
            with contextlib.suppress(Unreachable, UsageError):
                if self.request("/health", timeout=10).get("status") == "ok":
                    return
            if time.monotonic() > until or not self.alive:
                raise ToolchainError(
                    f"{self.model.name} was loaded but does not answer", file=self.log, hint=self.log_tail()
                )
            time.sleep(0.05)

    def close(self) -> None:
        """End the server at once, whatever it does. Never hangs; a second call does nothing."""
        child, self._child = self._child, None
        if child is not None:
            self._peak = max(self._peak, _peak_of(child.pid))
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            end_tree(child.pid)
            child.wait(timeout=30)
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch, self.log = None, None

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def _died(self) -> bool:
        """Whether the process is gone; its connections break a moment before it counts as ended."""
        if self._child is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=1)
        return not self.alive

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    def peak_memory(self) -> int:
        """Peak resident bytes of the server so far, the mapped model file included."""
        if self._child is not None:
            self._peak = max(self._peak, _peak_of(self._child.pid))
        return self._peak

    def log_tail(self) -> str:
        """The last lines that llama.cpp wrote."""
        return last_lines(self.log) if self.log is not None and self.log.is_file() else "no output"

    # ---- requests ---------------------------------------------------------------------------------

    def request(self, path: str, body: dict[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        """One JSON request (POST with a body, else GET) and its JSON answer.

        Errors: UsageError for what the server refuses, Unreachable when it is gone or too slow.
        """
        with self._open(path, body, timeout) as response:
            raw = response.read()
            if response.status != 200:
                raise _refusal(response.status, raw)
            try:
                return json.loads(raw)
            except ValueError:
                raise Unreachable("the model server answered with something else than JSON") from None

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Server-sent events of one request. Closing the generator stops the answer."""
        with self._open(path, {**body, "stream": True}, None) as response:
            if response.status != 200:
                raise _refusal(response.status, response.read())
            for line in response:
                text = line.decode("utf-8", "replace").strip()
                if text == "data: [DONE]":
                    return
                if text.startswith("data: "):
                    yield json.loads(text[6:])

    @contextlib.contextmanager
    def _open(
        self, path: str, body: dict[str, Any] | None, timeout: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port, timeout=timeout or self.timeout
        )
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
        payload = None if body is None else json.dumps(body)
        try:
            connection.request("GET" if body is None else "POST", path, payload, headers)
            yield connection.getresponse()
        except TimeoutError:
            raise Unreachable(
                f"the model server did not answer within {timeout or self.timeout:,.0f} s",
                hint="allow more time, or fewer tokens",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            state = "died" if self._died() else "closed the connection"
            raise Unreachable(
                f"the model server {state} ({type(error).__name__})",
                file=self.log,
                hint=f"the last lines of its log:\n{self.log_tail()}",
            ) from None
        finally:
            connection.close()

    # ---- what the checks ask ----------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids as llama.cpp reads a prompt: special tokens in the text are recognised.

        add_special: whether BOS (and EOS) are added as the file says, as happens to every prompt.
        """
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return [int(token) for token in self.request("/tokenize", body)["tokens"]]

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens shown."""
        return str(self.request("/detokenize", {"tokens": list(ids)})["content"])

    def apply_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        date: str | None = None,
    ) -> str:
        """The file's own chat template applied by llama.cpp, ready for the answer to follow.

        date: what templates that read ``date_string`` are told (Llama 3's do); today, where not given.
        """
        body: dict[str, Any] = {"messages": list(messages)}
        if date is not None:
            body["chat_template_kwargs"] = {"date_string": date}
        if tools:
            body["tools"] = list(tools)
        return str(self.request("/apply-template", body)["prompt"])

    def properties(self) -> dict[str, Any]:
        """What the server says of the model (``/props``)."""
        found: dict[str, Any] = self.request("/props")
        return found

    def complete(
        self,
        prompt: str | Sequence[int],
        max_tokens: int,
        *,
        top: int = 0,
        reuse: bool = False,
        bias: Sequence[tuple[int, float]] = (),
    ) -> Completion:
        """Greedy continuation of a prompt: text (BOS is added as the file says) or token ids as they are.

        top: how many alternatives to report for each token. reuse: keep the cached common prefix of the
        last prompt, faster but no longer bit-repeatable. bias: token id -> added to its logit.
        """
        body: dict[str, Any] = {
            **GREEDY,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "n_predict": max_tokens,
            "n_probs": top,
            "return_tokens": True,
            "cache_prompt": reuse,
        }
        if bias:
            body["logit_bias"] = [[token, value] for token, value in bias]
        answer = self.request("/completion", body)
        timings = answer.get("timings", {})
        stopped = answer.get("stop_type") == "eos"
        tokens = tuple(int(token) for token in answer.get("tokens", ()))
        reported = [_choice(entry) for entry in answer.get("completion_probabilities", ())]
        choices = _aligned(tokens, reported) if top else ()
        if stopped:
            tokens = tokens[:-1]  # the end token itself
        return Completion(
            text=answer["content"],
            tokens=tokens,
            stopped=stopped,
            choices=choices,
            prompt_tokens=int(answer.get("tokens_evaluated", 0)),
            tokens_per_second=timings.get("predicted_per_second"),
        )

    def nats_of(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float | None]:
        """Negative log-likelihood of each of an answer's tokens after a prompt, in nats.

        llama.cpp tells no log-probabilities of a prompt, but those of what it writes, before any bias: each
        token is forced in turn after the cached text before it. None where it tells nothing: at tokens that
        are only a part of a character.
        """
        found: list[float | None] = []
        for place, token in enumerate(answer):
            before = [*prompt, *answer[:place]]
            step = self.complete(before, 1, top=1, reuse=True, bias=((token, _FORCED),))
            choice = step.choices[0] if step.choices else None
            found.append(None if choice is None or choice.token != token else -choice.logprob)
        return found

    def chat(self, messages: Sequence[Message], **settings: Any) -> Iterator[str]:
        """Pieces of a chat answer as they come, with the file's own sampling settings unless given."""
        for event in self.stream("/v1/chat/completions", {"messages": list(messages), **settings}):
            if "error" in event:
                raise Unreachable(str(event["error"].get("message", event["error"])))
            for choice in event.get("choices", ()):
                piece = choice.get("delta", {}).get("content")
                if piece:
                    yield piece


def _aligned(tokens: Sequence[int], reported: Sequence[Choice]) -> tuple[Choice | None, ...]:
    """A report for each token. Reports leave tokens out; what lies between the gaps stays unassigned."""
    found: list[Choice | None] = [None] * len(tokens)
    front = 0
    while front < min(len(tokens), len(reported)) and tokens[front] == reported[front].token:
        found[front] = reported[front]
        front += 1
    back = 1
    while len(reported) - back >= front and tokens[-back] == reported[-back].token:
        found[-back] = reported[-back]
        back += 1
    return tuple(found)


def _choice(entry: dict[str, Any]) -> Choice:
    top = tuple((int(item["id"]), float(item["logprob"])) for item in entry.get("top_logprobs", ()))
    return Choice(token=int(entry["id"]), logprob=float(entry["logprob"]), top=top)


def _refusal(status: int, raw: bytes) -> UsageError | Unreachable:
    try:
        words = json.loads(raw)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        words = raw.decode("utf-8", "replace")[:200]
    if status in (401, 403):
        return UsageError(f"the model server refused the key: {words}")
    if status < 500:
        hint = "serve it with a larger context" if "context" in words else None
        return UsageError(f"the model server refused the request: {words}", hint=hint)
    return Unreachable(f"the model server failed ({status}): {words}")


def _peak_of(pid: int) -> int:
    try:
        with Path(f"/proc/{pid}/status").open(encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    with contextlib.suppress(psutil.Error):
        memory = psutil.Process(pid).memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    return 0


class GgufGenerator:
    """A served GGUF model as a :class:`luthier.schema.protocols.Generator`."""

    def __init__(self, server: LlamaServer, label: str, weights_digest: str | None = None) -> None:
        """label: for example ``gguf:Q4_K_M``. weights_digest: of the file, computed when not given."""
        self.server = server
        self.label = label
        self.weights_digest = weights_digest or file_sha256(server.model)
        self.tokens = 0
        """New tokens generated so far."""
        self.seconds = 0.0
        """Wall time spent in :meth:`generate`."""

    def generate(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Sequence[dict[str, Any]] | None] | None = None,
        max_new_tokens: int,
        progress: Progress | None = None,
    ) -> list[Generated]:
        """Greedy answers in the order of chats, as many at a time as the server has slots.

        Errors: UsageError when a chat is longer than the context, Unreachable when the server dies.
        """
        begun = time.perf_counter()

        def answer(index: int) -> Generated:
            prompt = plain_text(chats[index])
            if prompt is None:
                prompt = self.server.apply_template(chats[index], None if tools is None else tools[index])
            found = self.server.complete(prompt, max_new_tokens)
            return Generated(text=found.text, token_ids=found.tokens, stopped=found.stopped)

        answers = _in_order(answer, len(chats), self.server.settings.slots, progress)
        self.tokens += sum(len(found.token_ids) for found in answers)
        self.seconds += time.perf_counter() - begun
        return answers

    @property
    def tokens_per_second(self) -> float:
        """New tokens for each second of :meth:`generate`, prompts included in the time."""
        return self.tokens / max(self.seconds, _TINY)


def _in_order(
    work: Callable[[int], Generated], count: int, workers: int, progress: Progress | None
) -> list[Generated]:
    results: list[Generated] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for index, result in enumerate(pool.map(work, range(count))):
                results.append(result)
                if progress is not None:
                    progress(index + 1, count)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results
