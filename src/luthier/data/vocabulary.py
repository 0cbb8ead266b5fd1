"""A tokenizer of one's own, made from the training text: byte-pair encoding, or one token a character."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from luthier.errors import DataError

END = "<|endoftext|>"
PAD = "<|padding|>"
UNKNOWN = "<|unknown|>"


def train_bpe(texts: Iterable[str], size: int, marks: Sequence[str] = ()) -> Tokenizer:
    """Byte-level byte-pair encoding of at most ``size`` tokens; it can write every text.

    marks: texts that are tokens of their own, those of a chat template.
    """
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END, PAD, *marks],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    return fast


def character_tokenizer(texts: Iterable[str], marks: Sequence[str] = ()) -> Tokenizer:
    """One token for each character of the texts, and for each of the marks; others become the unknown one.

    Errors: DataError where there are more characters than an alphabet has.
    """
    found = sorted({letter for text in texts for letter in text})
    if len(found) > 20_000:
        raise DataError(
            f"the text has {len(found):,} different characters: too many for one token each",
            hint="set model.from_scratch.tokenizer: bpe",
        )
    names = [END, PAD, UNKNOWN, *marks, *found]
    fast = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token=UNKNOWN))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    fast.decoder = decoders.Fuse()
    fast.add_special_tokens([END, PAD, UNKNOWN, *marks])
    return fast


def save_tokenizer(fast: Tokenizer, folder: Path, *, context: int) -> None:
    """Write the tokenizer so that transformers' AutoTokenizer loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        **({"unk_token": UNKNOWN} if fast.token_to_id(UNKNOWN) is not None else {}),
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
