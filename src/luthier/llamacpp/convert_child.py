"""Child process of a conversion: ``python -m luthier.llamacpp.convert_child FOLDER SCRIPT ARGUMENTS``.

Runs one of llama.cpp's scripts by its path, with three things changed that its command line does not
offer: no network, no code from the model's folder, and pre-tokenizers named by how they split text.
"""

from __future__ import annotations

import json
import runpy
import sys
from typing import Any

from luthier.llamacpp.pretokenizers import name_of

_NETWORK = frozenset({"socket.connect", "socket.getaddrinfo", "socket.sendto"})


def _forbid_network(event: str, arguments: tuple[Any, ...]) -> None:
    # a pair of host and port is the network; a path is a socket of this machine
    if event in _NETWORK and (event == "socket.getaddrinfo" or isinstance(arguments[-1], tuple)):
        raise PermissionError(f"{event} is not allowed while a model is converted")


def _without_remote_code(auto_class: Any) -> None:
    """The scripts ask for remote code everywhere; here the answer is always no."""
    original = auto_class.from_pretrained

    def from_pretrained(*arguments: Any, **settings: Any) -> Any:
        return original(*arguments, **{**settings, "trust_remote_code": False})

    auto_class.from_pretrained = from_pretrained


def _naming_splitters(text_model: Any) -> None:
    """Where the converter does not know a tokenizer's digest, its splitter may still be a known one."""
    original = text_model.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(original(self, tokenizer))
        except NotImplementedError:
            backend = getattr(tokenizer, "backend_tokenizer", None)
            name = None if backend is None else name_of(json.loads(backend.to_str()))
            if name is None:
                raise
            sys.stderr.write(f"luthier: pre-tokenizer named {name} by its splitting pattern\n")
            return name

    text_model.get_vocab_base_pre = get_vocab_base_pre


def main(arguments: list[str]) -> None:
    """Run the script with its arguments; its exit is ours."""
    folder, script, *rest = arguments
    sys.addaudithook(_forbid_network)
    # as if started by path: its own packages first, the gguf that belongs to it among them
    sys.path[:0] = [folder, f"{folder}/gguf-py"]
    import transformers

    _without_remote_code(transformers.AutoTokenizer)
    _without_remote_code(transformers.AutoConfig)
    from conversion.base import TextModel  # type: ignore[import-not-found]  # lies in `folder`

    _naming_splitters(TextModel)
    sys.argv = [script, *rest]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
