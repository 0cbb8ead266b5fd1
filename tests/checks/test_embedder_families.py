"""Embedders shaped as XLM-R (bge-m3, multilingual E5) and Qwen3 give their own vectors as GGUF."""

import json

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model, XLMRobertaConfig, XLMRobertaModel

from gguf_families import TEXT, tokenizer
from luthier.data.tokenizer import load_tokenizer
from luthier.llamacpp.convert import convert
from luthier.llamacpp.embedder import LlamaEmbedder
from luthier.llamacpp.quantize import quantize
from luthier.llamacpp.runtime import LlamaServer, ServerSettings
from luthier.tasks.vectors import load_embedder
from tiny_encoders import write_steps

TEXTS = ["The small boat costs 37 crowns", "Über naïve cafés: 你好", "isn't it  dear?", "garden", TEXT[90]]


def xlm_roberta(folder):
    """A random XLM-R with a unigram vocabulary of its own, numbered as XLM-R numbers its pieces."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="pip install 'luthier[export]'")
    from transformers import XLMRobertaTokenizer

    folder.mkdir()
    (folder / "text.txt").write_text("\n".join(TEXT), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=220,
        model_type="unigram",
        hard_vocab_limit=False,
        minloglevel=3,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(pieces.IdToPiece(i), pieces.GetScore(i)) for i in range(3, pieces.vocab_size())]
    vocabulary += [("<mask>", 0.0)]
    made = XLMRobertaTokenizer(vocab=vocabulary, model_max_length=64)
    made.save_pretrained(folder)
    torch.manual_seed(4)
    config = XLMRobertaConfig(
        vocab_size=len(vocabulary),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=66,
        type_vocab_size=1,
        initializer_range=0.1,
    )
    XLMRobertaModel(config).save_pretrained(folder)
    return write_steps(folder, pooling="cls")


def qwen3(folder):
    """A random Qwen3 embedder: last token, which the tokenizer writes after every text."""
    made = tokenizer("qwen2")
    end = made.token_to_id("<|none|>")
    made.post_processor = processors.TemplateProcessing(
        single="$A <|none|>", pair="$A $B <|none|>", special_tokens=[("<|none|>", end)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|over|>", pad_token="<|none|>", model_max_length=64
    )
    torch.manual_seed(4)
    config = Qwen3Config(
        vocab_size=made.get_vocab_size(),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=made.token_to_id("<|over|>"),
        pad_token_id=end,
        initializer_range=0.1,
    )
    Qwen3Model(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return write_steps(folder, pooling="lasttoken")


@pytest.mark.parametrize("build", [xlm_roberta, qwen3], ids=lambda one: one.__name__)
def test_vectors_of_the_file_are_those_of_the_model(build, tmp_path, converter):
    folder = build(tmp_path / "model")
    own = load_tokenizer(folder)
    expected = load_embedder(folder, own, model_id="x", device="cpu").encode(TEXTS)
    assert np.allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    f16, q8 = tmp_path / "f16.gguf", tmp_path / "q8.gguf"
    convert(folder, f16, using=converter)
    quantize(f16, q8, "Q8_0", log=tmp_path / "log")
    limit = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    for path, least in ((f16, 0.999), (q8, 0.99)):
        with LlamaServer(path, ServerSettings(context=64, embedding=True, threads=1)) as server:
            for text in TEXTS:
                read = own.encode_inputs([text], most=None)[0][0]
                assert server.tokenize(text) == list(read), text

            def read_all(texts, role):
                del role
                return [ids for ids, _ in own.encode_inputs(texts, most=limit)]

            embedder = LlamaEmbedder(server, read_all, label="gguf", weights_digest="-", normalize=True)
            found = embedder.encode(TEXTS)
        assert (found * expected).sum(axis=1).min() >= least, path.name
        assert (found * expected[::-1]).sum(axis=1).min() < 0.9, "the vectors differ among themselves"
