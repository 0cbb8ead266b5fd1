"""Which files of a model repository are needed: one set of weights, config, tokenizer, licence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch

# Each family of weights is complete in itself; the first that a repository has is taken.
_WEIGHTS = (
    ("model-*-of-*.safetensors", "model.safetensors.index.json"),
    ("model.safetensors",),
    ("adapter_model.safetensors",),
    ("*-of-*.safetensors", "*.safetensors.index.json"),
    ("*.safetensors",),
    ("pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"),
    ("pytorch_model.bin",),
    ("adapter_model.bin",),
)
_TEXT = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "vocab.txt",
    "merges.txt",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
    "README.md",
)
# Records of somebody's training and of other formats, never read when a model is loaded.
_NOT_NEEDED = ("*.index.json", "trainer_state.json", "all_results.json", "*_results.json", "params.json")
# sentence-transformers keeps each module in a folder of its own: 1_Pooling/config.json
_MODULE = re.compile(r"^\d+_\w+/(config\.json|model\.safetensors|pytorch_model\.bin)$")
# A second copy in Mistral's own format beside model*.safetensors, or in half precision.
_DUPLICATE = ("consolidated*.safetensors", "*.fp16.safetensors", "*.bf16.safetensors")


def needed_files(names: Sequence[str], *, code: bool = False) -> tuple[str, ...]:
    """The files that loading, training and passing on a model take, in the repository's order.

    names: all paths of the repository. code: also its Python files (`trust_remote_code`). Empty where
    there are no weights in safetensors or PyTorch's format.
    """
    weights = _weights([name for name in names if "/" not in name])
    if not weights:
        return ()
    return tuple(name for name in names if name in weights or _beside(name, names, code))


def _weights(top: Sequence[str]) -> frozenset[str]:
    originals = [name for name in top if not _any(name, _DUPLICATE)]
    for candidates in (originals, top):
        for family in _WEIGHTS:
            files = [name for name in candidates if fnmatch(name, family[0])]
            if files:
                return frozenset(files) | {name for name in candidates if _any(name, family[1:])}
    return frozenset()


def _beside(name: str, names: Sequence[str], code: bool) -> bool:
    module = _MODULE.match(name)
    if module:
        twin = name.replace("pytorch_model.bin", "model.safetensors")
        return twin == name or twin not in names
    if fnmatch(name, "*.py"):
        return code
    if "/" in name:
        return fnmatch(name, "additional_chat_templates/*.jinja")
    return _any(name, _TEXT) and not _any(name, _NOT_NEEDED)


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
