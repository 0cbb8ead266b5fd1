"""Tiny random models of real architectures, 256 wide so that K-quants are real ones."""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

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


def made_up(splits):
    """A vocabulary and a template of no maker, as transformers wraps them."""
    import transformers

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(splits),
        eos_token="<|over|>",
        pad_token="<|none|>",
        additional_special_tokens=["<|turn|>"],
        chat_template=TEMPLATE,
        model_max_length=512,
    )


def save(folder, family, wrapped=None, *, ends=(2,)):
    """Write a saved model of that family, as a merge would leave it.

    wrapped: its tokenizer, a made-up one where not given; ends: the tokens that end an answer.
    """
    import transformers

    name, splits, extra = FAMILIES[family]
    wrapped = wrapped or made_up(splits)
    kind = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")
    torch.manual_seed(11)
    config = kind(
        vocab_size=len(wrapped),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=wrapped.model_max_length,
        bos_token_id=wrapped.bos_token_id,
        eos_token_id=ends[0],
        pad_token_id=wrapped.pad_token_id,
        **{"initializer_range": 0.05, **extra},
    )
    model = getattr(transformers, f"{name}ForCausalLM")(config).float()
    model.generation_config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder
