"""GGUF files made up by seed, and tiny models with a tokenizer of their own."""

import struct

import numpy as np
import pytest

from luthier.catalog.gguf_types import TYPE_IDS
from luthier.llamacpp.gguf_file import padded, tensor_bytes
from luthier.llamacpp.policy import is_quantised


def value(item):
    """One metadata value as GGUF writes it."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    inner = [value(one) for one in item]
    return (
        struct.pack("<I", 9) + inner[0][:4] + struct.pack("<Q", len(inner)) + b"".join(i[4:] for i in inner)
    )


def text(words):
    raw = words.encode()
    return struct.pack("<Q", len(raw)) + raw


def dump(path, metadata, tensors, *, packed=None):
    """tensors: name -> (type, shape in ggml's order, raw bytes). packed: metadata that is bytes already."""
    entries = {key: value(item) for key, item in metadata.items()} | (packed or {})
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(entries))]
    parts += [text(key) + item for key, item in entries.items()]
    offset = 0
    for name, (kind, shape, raw) in tensors.items():
        assert len(raw) == tensor_bytes(kind, shape), name
        parts.append(
            text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TYPE_IDS[kind], offset)
        )
        offset += padded(len(raw), 32)
    head = b"".join(parts)
    with path.open("wb") as file:
        file.write(head.ljust(padded(len(head), 32), b"\0"))
        for _, _, raw in tensors.values():
            file.write(raw.ljust(padded(len(raw), 32), b"\0"))
    return path


class Source:
    """A 16-bit model file, the same bytes everywhere: RandomState's stream is frozen by NumPy."""

    def __init__(self, seed=7):
        self.random = np.random.RandomState(seed)
        self.tensors = {}

    def add(self, name, *shape, kind="F16"):
        numbers = self.random.randint(-30000, 30000, size=int(np.prod(shape)), dtype=np.int64)
        floats = (numbers * (numbers % 7 + 1) / 400000).astype(np.float32)
        raw = floats.astype(np.float16 if kind == "F16" else np.float32).tobytes()
        self.tensors[name] = (kind, tuple(shape), raw)


def model(
    path, architecture="llama", *, layers=2, width=256, ff=256, heads=4, kv=2, experts=0, tied=True, qkv=False
):
    """A file with a decoder's tensor names, few rows each, and the metadata that a quantiser reads."""
    source, rows, a = Source(), 8, architecture
    stack = [experts] if experts else []
    suffix = "_exps.weight" if experts else ".weight"
    source.add("token_embd.weight", width, 64)
    for i in range(layers):
        b = f"blk.{i}."
        source.add(b + "attn_norm.weight", width, kind="F32")
        source.add(b + "ffn_down" + suffix, ff, rows, *stack)
        source.add(b + "ffn_up" + suffix, width, rows, *stack)
        if experts:
            source.add(b + "ffn_gate_inp.weight", width, experts, kind="F32")
        for part in ["qkv"] if qkv else ["q", "k", "v"]:
            source.add(f"{b}attn_{part}.weight", width, rows)
        source.add(b + "attn_output.weight", width, rows)
    source.add("output_norm.weight", width, kind="F32")
    if not tied:
        source.add("output.weight", width, 64)
    metadata = {
        "general.architecture": a,
        "general.name": "made up",
        "general.file_type": 1,
        f"{a}.block_count": layers,
        f"{a}.context_length": 512,
        f"{a}.embedding_length": width,
        f"{a}.feed_forward_length": ff,
        f"{a}.attention.head_count": heads,
        f"{a}.attention.head_count_kv": kv,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{a}.attention.layer_norm_epsilon": 1e-5,
        f"{a}.rope.dimension_count": width // heads,
        f"{a}.vocab_size": 64,
        "tokenizer.ggml.model": "no_vocab",
        "general.quantization_version": 2,
        "tokenizer.chat_template": "{{ messages }}",
    }
    if experts:
        metadata |= {f"{a}.expert_count": experts, f"{a}.expert_used_count": 2}
    return dump(path, metadata, source.tensors)


def made_up_importance(header, seed=5):
    """Tensor name -> importance of its columns, for the matrices of a file's blocks."""
    random = np.random.RandomState(seed)
    names = sorted(
        t.name for t in header.tensors if is_quantised(t) and len(t.shape) == 2 and "blk." in t.name
    )
    lengths = {tensor.name: tensor.shape[0] for tensor in header.tensors}
    return {name: (random.randint(1, 400, size=lengths[name]) / 97).astype(np.float32) for name in names}


BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS = {byte: chr(byte) for byte in BYTES}
LETTERS |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in BYTES)}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def speaking(path, *, seed=3, template=CHATML, **changes):
    """A random model that llama.cpp loads: 256 bytes and three control tokens, ChatML."""
    width, layers, tokens = (
        64,
        2,
        [LETTERS[b] for b in range(256)] + ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    random = np.random.RandomState(seed)
    shapes = {"token_embd": (width, len(tokens))}
    for i in range(layers):
        shapes |= {f"blk.{i}.attn_{part}": (width, width) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.ffn_{part}": (width, 96) for part in ("gate", "up")}
        shapes |= {f"blk.{i}.ffn_down": (96, width)}
    tensors = {
        f"{name}.weight": (
            "F16",
            shape,
            (random.standard_normal(shape[::-1]) * 0.2).astype(np.float16).tobytes(),
        )
        for name, shape in shapes.items()
    }
    ones = ("F32", (width,), np.ones(width, np.float32).tobytes())
    for i in range(layers):
        tensors |= {f"blk.{i}.attn_norm.weight": ones, f"blk.{i}.ffn_norm.weight": ones}
    tensors["output_norm.weight"] = ones
    metadata = {
        "general.architecture": "llama",
        "general.name": "speaking",
        "general.file_type": 1,
        "llama.block_count": layers,
        "llama.context_length": 512,
        "llama.embedding_length": width,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 16,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [f"{LETTERS[104]} {LETTERS[105]}"],
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": template,
    } | changes
    types = struct.pack("<IIQ", 9, 5, len(tokens)) + struct.pack(f"<{len(tokens)}i", *[1] * 256, 3, 3, 3)
    return dump(path, metadata, tensors, packed={"tokenizer.ggml.token_type": types})


SHAPES = {
    "dense": {"layers": 16},
    "untied": {"layers": 3, "tied": False},
    "seventy-b": {"layers": 80, "heads": 8, "kv": 1},
    "eight-experts": {"layers": 4, "experts": 8, "tied": False},
    "four-experts": {"layers": 9, "experts": 4},
    "narrow": {"layers": 8, "width": 96, "ff": 288, "heads": 3, "kv": 1},
    "falcon": {"architecture": "falcon", "layers": 32, "qkv": True, "tied": False},
    "phi3": {"architecture": "phi3", "layers": 8, "qkv": True},
    "qwen2": {"architecture": "qwen2", "layers": 80, "heads": 4, "kv": 4},
}


@pytest.fixture
def write_model(tmp_path):
    """name of a shape -> path of its 16-bit file."""
    return lambda name: model(tmp_path / f"{name}.gguf", **SHAPES[name])


@pytest.fixture(scope="session")
def speaker(tmp_path_factory):
    """A random model that llama.cpp loads."""
    return speaking(tmp_path_factory.mktemp("speaker") / "speaking-F16.gguf")


@pytest.fixture
def write_speaker(tmp_path):
    """Settings of `speaking` -> path of such a model."""
    return lambda **settings: speaking(tmp_path / "other-F16.gguf", **settings)


@pytest.fixture
def write_gguf(tmp_path):
    """metadata, tensors -> path of a file with exactly these."""
    return lambda metadata, tensors, name="file.gguf": dump(tmp_path / name, metadata, tensors)


@pytest.fixture(scope="session")
def importance_of():
    """Header of a 16-bit file -> a made-up importance matrix for it."""
    return made_up_importance
