"""Splitters are named by what they do, and nothing else is."""

import json

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from luthier.llamacpp.pretokenizers import PATTERNS, WHOLE_WORDS_FIRST, name_of


def saved(pre_tokenizer, *, ignore_merges=False):
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizer
    return json.loads(made.to_str())


def split(pattern, behaviour="isolated", *, use_regex=False):
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behaviour), level])


@pytest.mark.parametrize(("pattern", "name"), PATTERNS.items())
def test_patterns_have_names(pattern, name):
    whole = name in WHOLE_WORDS_FIRST
    assert name_of(saved(split(pattern), ignore_merges=whole)) == name
    assert name_of(saved(split(pattern), ignore_merges=not whole)) is None
    assert name_of(saved(split(pattern + "|x"), ignore_merges=whole)) is None
    assert name_of(saved(split(pattern, "removed"), ignore_merges=whole)) is None
    assert name_of(saved(split(pattern, use_regex=True), ignore_merges=whole)) is None


def test_the_plain_ones():
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    assert name_of(saved(level)) == "gpt-2"
    assert name_of(saved(pre_tokenizers.Sequence([digits, level]))) == "smollm"
    assert name_of(saved(pre_tokenizers.Sequence([pre_tokenizers.Digits(), level]))) is None
    assert name_of(saved(pre_tokenizers.ByteLevel(add_prefix_space=True))) is None
    assert name_of(saved(pre_tokenizers.Whitespace())) is None
    assert name_of(json.loads(Tokenizer(models.BPE()).to_str())) is None


def test_real_families_keep_their_splitter():
    """What transformers rebuilds for Qwen is what llama.cpp calls qwen2."""
    transformers = pytest.importorskip("transformers")
    made = transformers.Qwen2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[])
    assert name_of(json.loads(made.backend_tokenizer.to_str())) == "qwen2"
