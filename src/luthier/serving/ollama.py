"""Ollama: a Modelfile, and the import into a server that can be reached.

Formats: github.com/ollama/ollama, docs/modelfile.md, docs/template.md and docs/api.md.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from luthier.errors import LuthierError, Unreachable, UsageError
from luthier.files import file_sha256
from luthier.schema.protocols import Message, Progress
from luthier.serving.turns import Turns

DEFAULT_HOST = "http://127.0.0.1:11434"
SETTINGS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Names in a model's generation_config.json -> Ollama's."""


def go_template(turns: Turns) -> str:
    """The turns in Go's text/template, over Ollama's ``.Messages``."""
    parts = [_literal(turns.start)]
    if turns.system is not None and turns.default_system is not None:
        before, after = (_literal(text) for text in turns.system)
        # .System holds the conversation's own system prompt, or the Modelfile's.
        parts.append("{{ if not .System }}" + before + _literal(turns.default_system) + after + "{{ end }}")
    if turns.system is None:
        parts.append("{{ $shared := false }}")
    parts.append("{{ range .Messages }}")
    parts.append('{{ if eq .Role "system" }}')
    if turns.system is None:
        parts.append(
            _literal(turns.user[0]) + "{{ .Content }}" + _literal(turns.glue) + "{{ $shared = true }}"
        )
    else:
        parts.append(_around(turns.system))
    parts.append('{{ else if eq .Role "user" }}')
    if turns.system is None:
        start = "{{ if $shared }}{{ $shared = false }}{{ else }}" + _literal(turns.user[0]) + "{{ end }}"
        parts.append(start + "{{ .Content }}" + _literal(turns.user[1]))
    else:
        parts.append(_around(turns.user))
    parts.append('{{ else if eq .Role "assistant" }}' + _around(turns.assistant))
    parts.append("{{ end }}{{ end }}" + _literal(turns.answer))
    return "".join(parts)


def _around(pair: tuple[str, str]) -> str:
    return _literal(pair[0]) + "{{ .Content }}" + _literal(pair[1])


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """All that Ollama is told of a model."""

    gguf: Path
    template: str
    system: str | None
    context: int
    stops: Sequence[str]
    settings: Mapping[str, float]
    """Sampling settings by Ollama's names, from the model's own generation settings."""
    licence: str | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        return {"num_ctx": self.context, "stop": list(self.stops), **self.settings}


def settings_of(generation_config: Mapping[str, Any]) -> dict[str, float]:
    """Sampling settings that a model's generation_config.json states, by Ollama's names."""
    if generation_config.get("do_sample") is False:
        return {"temperature": 0.0}
    return {
        name: generation_config[key]
        for key, name in SETTINGS.items()
        if isinstance(generation_config.get(key), int | float)
    }


def modelfile(model: OllamaModel, *, source: str | None = None) -> str:
    """The Modelfile. source: path of the GGUF in it; ``./NAME`` when not given.

    Errors: UsageError for text that the format cannot hold.
    """
    lines = [f"FROM {source or './' + model.gguf.name}", f"TEMPLATE {_quoted(model.template)}"]
    if model.system:
        lines.append(f"SYSTEM {_quoted(model.system)}")
    lines.append(f"PARAMETER num_ctx {model.context}")
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in model.stops]
    lines += [f"PARAMETER {name} {value:g}" for name, value in model.settings.items()]
    if model.licence:
        lines.append(f"LICENSE {_quoted(model.licence)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if '"""' in text:
        raise UsageError(
            'the chat template or system prompt has """ in it, which a Modelfile cannot hold',
            hint="serve it with llama.cpp, LM Studio or vLLM",
        )
    return f'"""{text}"""'


def model_name(words: str) -> str:
    """A name that Ollama takes: lower case, ``name`` or ``name:tag``."""
    return re.sub(r"[^a-z0-9._:/-]+", "-", words.lower()).strip("-.:/") or "model"


class Ollama:
    """A running Ollama. address: ``OLLAMA_HOST`` or the usual port here."""

    def __init__(self, address: str | None = None) -> None:
        given = address or os.environ.get("OLLAMA_HOST") or DEFAULT_HOST
        self.address = given if "://" in given else f"http://{given}"
        if re.fullmatch(r"https?://[^/:]+", self.address):
            self.address += ":11434"
        self._http = httpx2.Client(
            base_url=self.address, timeout=httpx2.Timeout(600, connect=3), trust_env=False
        )

    def version(self) -> str | None:
        """The server's version; None where none answers."""
        try:
            return str(self._http.get("/api/version", timeout=3).json()["version"])
        except (httpx2.HTTPError, ValueError, KeyError):
            return None

    def create(self, name: str, model: OllamaModel, *, progress: Progress | None = None) -> None:
        """Bring a model in, its file only where the server does not have it. Errors: Unreachable."""
        digest = f"sha256:{file_sha256(model.gguf)}"
        try:
            if self._http.head(f"/api/blobs/{digest}").status_code != 200:
                sent = self._http.post(f"/api/blobs/{digest}", content=_pieces(model.gguf, progress))
                _check(sent)
            asked = {
                "model": name,
                "files": {model.gguf.name: digest},
                "template": model.template,
                "parameters": model.parameters,
                "stream": False,
                **({"system": model.system} if model.system else {}),
                **({"license": model.licence} if model.licence else {}),
            }
            _check(self._http.post("/api/create", json=asked))
        except httpx2.HTTPError as error:
            raise Unreachable(
                f"Ollama at {self.address} did not answer ({type(error).__name__})",
                hint="start it with `ollama serve`, or set OLLAMA_HOST",
            ) from None

    def chat(self, name: str, messages: Sequence[Message], *, most: int = 64) -> dict[str, Any]:
        """One greedy answer with its timings. Errors: Unreachable."""
        body = {
            "model": name,
            "messages": list(messages),
            "options": {"temperature": 0, "num_predict": most},
            "stream": False,
        }
        try:
            answer = self._http.post("/api/chat", json=body)
            _check(answer)
            found: dict[str, Any] = answer.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise Unreachable(f"Ollama at {self.address} did not answer ({type(error).__name__})") from None
        return found

    def memory(self, name: str) -> int | None:
        """Bytes that a loaded model takes; None where it is not loaded."""
        try:
            for model in self._http.get("/api/ps").json().get("models", ()):
                if model.get("name", "").removesuffix(":latest") == name.removesuffix(":latest"):
                    return int(model["size"])
        except (httpx2.HTTPError, ValueError, KeyError):
            return None
        return None

    def unload(self, name: str) -> None:
        """Let a model that was brought in go from memory; it stays on disk. Errors: Unreachable."""
        try:
            _check(self._http.post("/api/generate", json={"model": name, "keep_alive": 0}))
        except httpx2.HTTPError as error:
            raise Unreachable(f"Ollama at {self.address} did not answer ({type(error).__name__})") from None

    def remove(self, name: str) -> None:
        """Delete a model that was brought in. Errors: Unreachable."""
        try:
            _check(self._http.request("DELETE", "/api/delete", json={"model": name}))
        except httpx2.HTTPError as error:
            raise Unreachable(f"Ollama at {self.address} did not answer ({type(error).__name__})") from None


def _pieces(path: Path, progress: Progress | None) -> Any:
    size, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            yield piece
            done += len(piece)
            if progress is not None:
                progress(done, size)


def _check(response: httpx2.Response) -> None:
    if response.is_success:
        return
    try:
        words = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        words = response.text[:200]
    raise LuthierError(f"Ollama refused the model ({response.status_code}): {words}")
