"""Tiny random models of real architectures, 256 wide so that K-quants are real ones, and their GGUF files."""

import struct

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from luthier.errors import ToolchainError
from luthier.llamacpp.gguf_file import read_header
from luthier.llamacpp.pretokenizers import PATTERNS

SPECIALS = ["<|none|>", "<|turn|>", "<|over|>"]
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|over|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TEXT = [
    f"The {size} {thing} costs {n * 37} crowns, said {who}; isn't it  dear?\n\tÜber {n} naïve cafés: 你好 🙂"
    for size in ("small", "large", "old", "new")
    for thing in ("boat", "house", "garden", "wheel", "engine")
    for who in ("Ann", "Bob", "the baker")
    for n in range(5)
]


def splitter(name):
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), splitter("gpt-2")])
    pattern = next(pattern for pattern, known in PATTERNS.items() if known == name)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])


def tokenizer(name):
    """A byte-level BPE tokenizer that splits like llama.cpp's `name`."""
    made = Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    made.pre_tokenizer, made.decoder = splitter(name), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=512, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return made


FAMILIES = {
    "llama": ("Llama", "gpt-2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", "qwen2", {"head_dim": 64}),
    "mistral": ("Mistral", "tekken", {"sliding_window": None}),
    # llama.cpp takes every sixth layer of Gemma 3 for a full one: two layers slide
    "gemma3": (
        "Gemma3",
        "smollm",
        {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 16, "initializer_range": 0.02},
    ),
    "mixtral": ("Mixtral", "llama-bpe", {"num_local_experts": 8, "num_experts_per_tok": 2}),
}


def save(folder, family):
    """Write a saved model of that family, as a merge would leave it."""
    import transformers

    name, splits, extra = FAMILIES[family]
    made = tokenizer(splits)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|over|>",
        pad_token="<|none|>",
        additional_special_tokens=["<|turn|>"],
        chat_template=TEMPLATE,
        model_max_length=512,
    )
    kind = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")
    torch.manual_seed(11)
    config = kind(
        vocab_size=made.get_vocab_size(),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        **{"initializer_range": 0.05, **extra},
    )
    model = getattr(transformers, f"{name}ForCausalLM")(config).float()
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def converter():
    """llama.cpp's converter, or a skipped test that says how to get it."""
    pytest.importorskip("xllamacpp", reason="pip install 'luthier[export]'")
    from luthier.llamacpp.setup import converter

    try:
        return converter()
    except ToolchainError as error:
        pytest.skip(f"{error}: {error.hint}")


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """family -> folder of its saved tiny model."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = save(tmp_path_factory.mktemp(family), family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def converted(saved, converter, tmp_path_factory):
    """family -> its F16 GGUF."""
    from luthier.llamacpp.convert import convert

    made = {}

    def get(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("gguf") / f"{family}-F16.gguf"
            convert(saved(family), made[family], using=converter)
        return made[family]

    return get


@pytest.fixture(scope="session")
def reference(saved):
    """family -> its model in this process."""
    from luthier.data.tokenizer import load_tokenizer
    from luthier.models.generate import TorchGenerator
    from luthier.models.load import load_causal

    def get(family):
        folder = saved(family)
        return TorchGenerator(
            load_causal(folder, dtype="float32"), load_tokenizer(folder), label="tuned", weights_digest="-"
        )

    return get


def rewrite(source, out, changes):
    """A copy of a GGUF file with other metadata. changes: key -> the value's new bytes, type first."""
    header = read_header(source)
    data = source.read_bytes()[len(header.raw) :]
    last = max(end for _, _, end in header.spans.values())
    entries = [
        header.raw[start:at] + changes.get(key, header.raw[at:end])
        for key, (start, at, end) in header.spans.items()
    ]
    new = changes.keys() - header.spans.keys()
    entries += [struct.pack("<Q", len(key)) + key.encode() + changes[key] for key in new]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(header.tensors), len(entries)) + b"".join(entries)
    head += tensor_table(header, header.raw[last:])
    out.write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + data)
    return out


def tensor_table(header, raw):
    """The table's bytes without the padding behind it."""
    at = 0
    for _ in header.tensors:
        (length,) = struct.unpack_from("<Q", raw, at)
        (dims,) = struct.unpack_from("<I", raw, at + 8 + length)
        at += 8 + length + 4 + 8 * dims + 12
    return raw[:at]


@pytest.fixture
def plant(tmp_path):
    """source, key=value bytes -> a copy with that fault in its metadata."""
    return lambda source, **changes: rewrite(
        source, tmp_path / "planted-F16.gguf", {key.replace("__", "."): raw for key, raw in changes.items()}
    )
