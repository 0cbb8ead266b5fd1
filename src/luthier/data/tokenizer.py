"""A model's own tokenizer and chat template, read from its files without torch or transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import AddedToken, Tokenizer, processors

from luthier.data.template import arguments_as_text, compile_template, plain_messages
from luthier.errors import DataError, FileProblem, RecipeError, Unsupported
from luthier.schema.protocols import Message, plain_text

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_TELLING_TEXTS_APART = (
    "Bert", "Deberta", "DebertaV2", "Electra", "Albert", "MobileBert", "ConvBert", "Funnel", "RoFormer",
    "SqueezeBert", "LayoutLM", "XLNet", "BigBird", "Ernie",
)  # fmt: skip
"""Tokenizer classes of transformers that give segment ids although their files do not say so."""
_UNLIMITED = 10**9
"""transformers writes 1e30 where a tokenizer knows no limit."""


def load_tokenizer(
    directory: Path,
    *,
    now: datetime | None = None,
    template: str | None = None,
    new_tokens: Sequence[str] = (),
) -> FileTokenizer:
    """Read the tokenizer of a saved model.

    directory: a folder with tokenizer.json and, for chat, a template. now: what templates that print
    the date are told; give the same moment to get the same tokens on another day. template: what was
    asked for in place of the model's own (see `data.chat_template.read_template`). new_tokens: texts that
    become tokens of their own. Raises FileProblem where files are missing or broken, RecipeError for a new
    token that there is already.
    """
    directory = Path(directory)
    fast, config = tokenizer_files(directory)
    return FileTokenizer(directory, fast, config, now=now, template=template, new_tokens=new_tokens)


def tokenizer_files(directory: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """A saved model's tokenizer.json and the settings beside it. Raises FileProblem."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FileProblem(
            "there is no tokenizer.json",
            file=directory,
            hint=_no_tokenizer_hint(directory),
        )
    config = _json(directory / "tokenizer_config.json")
    if not (directory / "tokenizer_config.json").is_file() or "added_tokens_decoder" not in config:
        # Folders written before the tokens moved into tokenizer_config.json keep them beside it.
        config = {**config, **_json(directory / "special_tokens_map.json")}
    try:
        # From a string: `from_file` cannot open every path that Python can.
        fast = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise FileProblem(
            f"cannot be read as a tokenizer: {error}",
            file=path,
            hint="save the model again with its tokenizer, or download the file again",
        ) from error
    return fast, config


class FileTokenizer:
    """``schema.protocols.TextTokenizer`` over the ``tokenizers`` library and a sandboxed template."""

    def __init__(
        self,
        directory: Path,
        fast: Tokenizer,
        config: dict[str, Any],
        *,
        now: datetime | None = None,
        template: str | None = None,
        new_tokens: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self._now, self._config, self._new = now, config, tuple(new_tokens)
        named = {
            name: _content(config[name])
            for name in config
            if name.endswith("_token") and isinstance(config[name], (str, dict)) and _content(config[name])
        }
        for name, value in (
            (config.get("extra_special_tokens") or {}).items()
            if isinstance(config.get("extra_special_tokens"), dict)
            else ()
        ):
            named[name] = _content(value)
        self.special_tokens: dict[str, str] = named
        """Name (``bos_token``) -> text, as templates see them."""
        _add_missing(fast, config, named)
        fast.no_truncation()
        fast.no_padding()
        self._asked = template
        self._templates = _templates(directory, config) if template is None else {"default": template}
        self.new_tokens: dict[int, tuple[int, ...]] = self._add_new(fast)
        """Id of each new token -> the tokens that its text was split into before."""
        with_special = fast.encode("a", add_special_tokens=True).ids
        bare = fast.encode("a", add_special_tokens=False).ids
        self.prefix_ids: tuple[int, ...] = tuple(_before(with_special, bare))
        """What the tokenizer itself puts before a text without template: usually the bos token or nothing."""
        # Special tokens are never added here, so the post-processor would only trim spaces off offsets.
        fast.post_processor = processors.Sequence([])
        self._fast = fast
        self._bpe = type(fast.model).__name__ == "BPE"
        self._cleans = bool(config.get("clean_up_tokenization_spaces", False))
        self.vocab_size = fast.get_vocab_size(with_added_tokens=True)
        special = {i: token.content for i, token in fast.get_added_tokens_decoder().items() if token.special}
        self.special_ids: frozenset[int] = frozenset(special)
        self.special_texts: frozenset[str] = frozenset(special.values())
        generation = _json(directory / "generation_config.json")
        model = _json(directory / "config.json")
        self.eos_ids: frozenset[int] = self._find_eos(generation, model)
        pad = self._id(named.get("pad_token"))
        self.pad_id: int = pad if pad is not None else min(self.eos_ids, default=0)
        self.max_length: int | None = _max_length(config, model)
        """Longest sequence in tokens that tokenizer or model declare; None where neither does."""
        self._compiled: dict[str, jinja2.Template] = {}
        self.turn_end: int | None = None if template is None and not self.new_tokens else self._turn_end()
        """The special token that ends a turn of a template that was asked for, or a new one that ends those
        of the model's own, where the model's files do not name it as an end."""
        if template is None and self.turn_end not in self.new_tokens:
            self.turn_end = None
        if self.turn_end is not None:
            self.eos_ids |= {self.turn_end}

    def __reduce__(self) -> tuple[Any, ...]:
        return _reload, (self.directory, self._now, self._asked, self._new)

    @cached_property
    def gives_segments(self) -> bool:
        """Whether transformers' tokenizer of these files tells two texts apart by segment ids."""
        names = self._config.get("model_input_names")
        if isinstance(names, list):
            return "token_type_ids" in names
        kind = str(self._config.get("tokenizer_class") or "")
        if not kind:
            kind = str(_json(self.directory / "config.json").get("model_type") or "")
            return kind.replace("-", "").replace("_", "").lower() in {n.lower() for n in _TELLING_TEXTS_APART}
        return kind.removesuffix("Fast").removesuffix("Tokenizer") in _TELLING_TEXTS_APART

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    @property
    def chat_template(self) -> str | None:
        """Source of the template used for chats without tools."""
        return self._templates.get("default")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the files that decide ids and strings."""
        total = hashlib.sha256()
        extra = sorted((self.directory / "additional_chat_templates").glob("*.jinja"))
        for path in [self.directory / name for name in _FILES] + extra:
            if path.is_file():
                total.update(f"{path.name}\0".encode())
                total.update(hashlib.sha256(path.read_bytes()).digest())
        if self._asked is not None:
            total.update(b"asked\0" + self._asked.encode())
        if self._new:
            total.update(b"new\0" + json.dumps(self._new).encode())
        return total.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of text as it stands: special tokens in it are recognised, none are added."""
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def encode_inputs(
        self, inputs: Sequence[str | tuple[str, str]], *, most: int | None = None
    ) -> list[tuple[list[int], list[int]]]:
        """Token ids and segment ids of texts or pairs, with the special tokens that the tokenizer adds.

        The same as transformers' ``tokenizer(text, pair, truncation=True, max_length=most)``: what is
        longer than ``most`` tokens loses its end, the longer text of a pair first.
        """
        fast = self._with_special
        if most is None:
            fast.no_truncation()
        else:
            fast.enable_truncation(most, strategy="longest_first")
        return [(one.ids, one.type_ids) for one in fast.encode_batch(list(inputs), add_special_tokens=True)]

    @cached_property
    def _with_special(self) -> Tokenizer:
        """The tokenizer with its own post-processor, which adds what encoders expect around a text."""
        fast = Tokenizer.from_str((self.directory / "tokenizer.json").read_text(encoding="utf-8"))
        _add_missing(fast, self._config, self.special_tokens)
        self._add_new(fast)
        fast.no_padding()
        return fast

    def _add_new(self, fast: Tokenizer) -> dict[int, tuple[int, ...]]:
        """Make tokens of the new texts: special ones of those that a chat template writes."""
        for text in self._new:
            if (index := fast.token_to_id(text)) is not None:
                raise RecipeError(
                    f"model.new_tokens: {text!r} is token {index} of this vocabulary already",
                    file=self.directory / "tokenizer.json",
                    hint="leave it out: rows that have it are read so as it is",
                )
        pieces = [tuple(fast.encode(text, add_special_tokens=False).ids) for text in self._new]
        for text in self._new:
            marks = any(text in source for source in self._templates.values())
            fast.add_tokens([AddedToken(text, special=marks, normalized=False)])
        ids = [index for text in self._new if (index := fast.token_to_id(text)) is not None]
        return dict(zip(ids, pieces, strict=True))

    def written(self) -> str:
        """The tokenizer.json with the new tokens in it, as the file's own settings have it otherwise."""
        fast, _ = tokenizer_files(self.directory)
        _add_missing(fast, self._config, self.special_tokens)
        self._add_new(fast)
        return str(fast.to_str(pretty=True))

    def encode_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """For each text its token ids and, for each token, the characters [start, end) it stands for."""
        encoded = self._fast.encode_batch(list(texts), add_special_tokens=False)
        return [(one.ids, one.offsets) for one in encoded]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids."""
        text = str(self._fast.decode(list(ids), skip_special_tokens=skip_special))
        # transformers tidies spaces before punctuation for vocabularies other than BPE.
        return _tidy(text) if self._cleans and not self._bpe else text

    def token(self, index: int) -> str:
        """The vocabulary's own spelling of a token."""
        return str(self._fast.id_to_token(index))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """The chat template applied to messages; a message of role ``text`` stands as it is, without one.

        Raises Unsupported where the model has no template, DataError where the template refuses the
        messages (for example roles that do not alternate).
        """
        if not messages:
            raise DataError("a chat needs at least one message")
        if (text := plain_text(messages)) is not None:
            return self.decode(self.prefix_ids, skip_special=False) + text
        template = self._template("tool_use" if tools is not None else "default")

        def fill(chat: list[dict[str, Any]]) -> str:
            return template.render(
                messages=chat,
                tools=None if tools is None else list(tools),
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )

        plain = plain_messages(messages)
        try:
            try:
                return fill(plain)
            except TypeError:
                # Some templates add a call's arguments to a text: they want JSON, as OpenAI sends it.
                texts = arguments_as_text(plain)
                if texts == plain:
                    raise
                return fill(texts)
        except jinja2.TemplateError as error:
            raise DataError(
                f"the chat template refuses these messages: {error}",
                hint="change the rows to what the template allows, or choose a model whose template "
                "allows them",
            ) from error
        except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
            # Templates index and add without asking; what they trip over is the row's shape.
            raise DataError(
                f"the chat template cannot render these messages: {type(error).__name__}: {error}",
                hint="every message needs a role and text content; tool calls need a name and arguments",
            ) from error

    def _turn_end(self) -> int | None:
        if "default" not in self._templates:
            return None
        word = "Rowan"
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": word}]
        ids = self.encode(self.render(turns).rpartition(word)[2])
        return ids[0] if ids and ids[0] in self.special_ids and ids[0] not in self.eos_ids else None

    def _template(self, name: str) -> jinja2.Template:
        if not self._templates:
            raise Unsupported(
                "this model has no chat template: it is a base model, or its template was not saved with it",
                file=self.directory,
                hint="name an instruct model; or ask for a template: model.chat_template=plain (or chatml, a "
                ".jinja file, the folder of an instruct model); or train on plain text with "
                "`task: text-generation`",
            )
        name = name if name in self._templates else "default"
        if name not in self._templates:
            raise Unsupported(
                f"this model has several chat templates ({', '.join(sorted(self._templates))}) and none is "
                "the default",
                file=self.directory,
                hint="save the one to use as chat_template.jinja beside the tokenizer",
            )
        if name not in self._compiled:
            try:
                self._compiled[name] = compile_template(self._templates[name], now=self._now)
            except jinja2.TemplateSyntaxError as error:
                raise FileProblem(
                    f"the chat template is broken at its line {error.lineno}: {error.message}",
                    file=self.directory,
                    hint="download the model's template again, or mend chat_template.jinja",
                ) from error
        return self._compiled[name]

    def _id(self, text: str | None) -> int | None:
        return None if text is None else self._fast.token_to_id(text)

    def _find_eos(self, generation: dict[str, Any], model: dict[str, Any]) -> frozenset[int]:
        found = {self._id(self.special_tokens.get("eos_token"))}
        for source in (generation, model if "eos_token_id" not in generation else {}):
            value = source.get("eos_token_id")
            found.update(value if isinstance(value, list) else [value])
        return frozenset(index for index in found if index is not None)


def _reload(
    directory: Path, now: datetime | None, template: str | None, new_tokens: tuple[str, ...]
) -> FileTokenizer:
    return load_tokenizer(directory, now=now, template=template, new_tokens=new_tokens)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileProblem(
            f"is not valid JSON: {error}", file=path, hint="download the model's files again"
        ) from error
    if not isinstance(value, dict):
        raise FileProblem("is not a JSON object", file=path, hint="download the model's files again")
    return value


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _added(token: Any, *, special: bool) -> AddedToken:
    if isinstance(token, dict):
        flags = {k: bool(token[k]) for k in ("single_word", "lstrip", "rstrip", "normalized") if k in token}
        return AddedToken(token["content"], special=bool(token.get("special", special)), **flags)
    return AddedToken(str(token), special=special)


def _add_missing(fast: Tokenizer, config: dict[str, Any], named: dict[str, str]) -> None:
    """Give the tokenizer the special tokens that only its config names, as transformers does."""
    known = {token.content for token in fast.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    wanted = [
        _added(token, special=False)
        for _, token in sorted(listed.items(), key=lambda pair: int(pair[0]))
        if _content(token) not in known
    ]
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    candidates = [config.get(name) for name in _NAMED_TOKENS if named.get(name)]
    candidates += list(extra) if isinstance(extra, list) else []
    for token in candidates:
        text = _content(token)
        if text not in known and text not in {one.content for one in wanted}:
            wanted.append(_added(token, special=True))
    if wanted:
        fast.add_tokens(wanted)


def _before(with_special: list[int], bare: list[int]) -> list[int]:
    """What stands before ``bare`` in ``with_special``."""
    for start in range(len(with_special) - len(bare) + 1):
        if with_special[start : start + len(bare)] == bare:
            return with_special[:start]
    return []


def _max_length(config: dict[str, Any], model: dict[str, Any]) -> int | None:
    declared = config.get("model_max_length")
    if isinstance(declared, (int, float)) and 0 < declared < _UNLIMITED:
        return int(declared)
    for source in (model, model.get("text_config") or {}):
        positions = source.get("max_position_embeddings")
        if isinstance(positions, int) and positions > 0:
            return positions
    return None


def _templates(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """Name -> source. Files beside the tokenizer win over tokenizer_config.json, as in transformers."""
    found: dict[str, str] = {}
    single = directory / "chat_template.jinja"
    if single.is_file():
        found["default"] = single.read_text(encoding="utf-8")
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = path.read_text(encoding="utf-8")
    if found:
        return found
    value = config.get("chat_template") or _json(directory / "chat_template.json").get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        return {str(one["name"]): str(one["template"]) for one in value}
    if isinstance(value, dict):
        return {str(name): str(source) for name, source in value.items()}
    return {}


def _no_tokenizer_hint(directory: Path) -> str:
    if not directory.is_dir():
        return "name a folder with a saved model, a catalogue id or a Hub id"
    if (directory / "tokenizer.model").is_file() or (directory / "vocab.json").is_file():
        return (
            "this folder has the vocabulary in an older format: load it once with transformers' "
            "AutoTokenizer and save it again (`save_pretrained`), which writes tokenizer.json"
        )
    return "save the tokenizer into the model's folder (`save_pretrained`), or download the model again"


def _tidy(text: str) -> str:
    for bad, good in (
        (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
        (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
    ):  # fmt: skip
        text = text.replace(bad, good)
    return text
