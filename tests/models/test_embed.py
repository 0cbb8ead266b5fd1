"""Vectors against sentence-transformers' own from the same folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.data.tokenizer import load_tokenizer
from luthier.errors import FileProblem, Unsupported
from luthier.models.embed import DenseLayers, TorchEmbedder, has_segments, load_backbone
from luthier.models.vector_settings import read_vector_settings, write_vector_settings
from tiny_encoders import save_tiny_decoder, save_tiny_encoder, sentences, write_steps

TEXTS = [*sentences(11), "the", "red " * 40]


def embedder(folder: Path, **changes: Any) -> TorchEmbedder:
    settings = read_vector_settings(folder, prompts=changes.pop("prompts", None))
    model = load_backbone(folder, dtype="float32")
    tokenizer = load_tokenizer(folder)

    def batches(texts: Sequence[str]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        encoded = tokenizer.encode_inputs(list(texts), most=settings.max_length)
        for start in range(0, len(texts), 4):
            part = encoded[start : start + 4]
            longest = max(len(ids) for ids, _ in part)
            inputs = {
                "input_ids": torch.tensor(
                    [ids + [tokenizer.pad_id] * (longest - len(ids)) for ids, _ in part]
                ),
                "attention_mask": torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i, _ in part]),
            }
            if has_segments(model):
                inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
            yield list(range(start, start + len(part))), inputs

    dense = DenseLayers(settings.dense, folder) if settings.dense else None
    return TorchEmbedder(model, settings, batches, label="base", weights_digest="", dense=dense, **changes)


def theirs(folder: Path, texts: Sequence[str], **words: Any) -> np.ndarray:
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(model.encode(list(texts), batch_size=5, **words))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean"])
def test_an_encoder(tmp_path: Path, pooling: str, normalize: bool) -> None:
    folder = write_steps(save_tiny_encoder(tmp_path / "m"), pooling=pooling, normalize=normalize)
    np.testing.assert_allclose(embedder(folder).encode(TEXTS), theirs(folder, TEXTS), atol=2e-6)


@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
def test_other_architectures(tmp_path: Path, kind: str) -> None:
    if kind == "qwen3":
        folder = write_steps(save_tiny_decoder(tmp_path / "m"), pooling="lasttoken")
    else:
        folder = write_steps(save_tiny_encoder(tmp_path / "m", kind=kind), pooling="cls")
    np.testing.assert_allclose(embedder(folder).encode(TEXTS), theirs(folder, TEXTS), atol=2e-6)


def test_a_decoder_without_steps_is_pooled_at_its_last_token(tmp_path: Path) -> None:
    folder = save_tiny_decoder(tmp_path / "m", causal_head=True)
    settings = read_vector_settings(folder)
    assert settings.pooling == ("lasttoken",)
    assert settings.normalize
    assert "usual for a decoder" in settings.source
    assert read_vector_settings(save_tiny_encoder(tmp_path / "e")).pooling == ("mean",)
    assert embedder(folder).encode(TEXTS[:2]).shape == (2, 32)


def test_prompts_by_role(tmp_path: Path) -> None:
    folder = write_steps(save_tiny_encoder(tmp_path / "m"), query="query: ", passage="passage: ")
    ours = embedder(folder)
    for role, name in (("query", "query"), ("document", "passage")):
        np.testing.assert_allclose(
            ours.encode(TEXTS, role=role), theirs(folder, TEXTS, prompt_name=name), atol=2e-6
        )
    np.testing.assert_allclose(ours.encode(TEXTS), theirs(folder, TEXTS), atol=2e-6)
    assert not np.allclose(ours.encode(TEXTS), ours.encode(TEXTS, role="query"), atol=1e-3)


def test_prompts_of_the_catalogue_stand_in_where_the_model_names_none(tmp_path: Path) -> None:
    folder = write_steps(save_tiny_encoder(tmp_path / "m"))
    settings = read_vector_settings(folder, prompts={"query": "query: "})
    assert settings.prompt("query") == "query: "
    assert settings.prompts_source == "the catalogue"
    told = write_steps(save_tiny_encoder(tmp_path / "n"), query="a ")
    assert read_vector_settings(told, prompts={"query": "query: "}).prompt("query") == "a "


def test_the_prompt_can_be_left_out_of_the_pooling(tmp_path: Path) -> None:
    folder = write_steps(save_tiny_encoder(tmp_path / "m"), query="query: the big ")
    file = folder / "1_Pooling" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "include_prompt": False}))
    ours = embedder(folder).encode(TEXTS[:-1], role="query")
    np.testing.assert_allclose(ours, theirs(folder, TEXTS[:-1], prompt_name="query"), atol=2e-6)


def test_dense_layers(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder = write_steps(save_tiny_encoder(tmp_path / "m"), normalize=False)
    steps = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    dense = library.models.Dense(32, 12)
    whole = library.SentenceTransformer(modules=[steps[0], steps[1], dense, library.models.Normalize()])
    whole.save(str(tmp_path / "d"), create_model_card=False)
    ours = embedder(tmp_path / "d")
    vectors = ours.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 12)
    np.testing.assert_allclose(vectors, np.asarray(whole.encode(TEXTS)), atol=2e-6)
    # Written anew beside the same weights, it loads and gives the same vectors.
    ours.model.save_pretrained(tmp_path / "e")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "e" / name).write_bytes((folder / name).read_bytes())
    write_vector_settings(tmp_path / "e", ours.settings, base=tmp_path / "d", width=32)
    np.testing.assert_allclose(theirs(tmp_path / "e", TEXTS), vectors, atol=2e-6)


def test_first_dimensions(tmp_path: Path) -> None:
    folder = write_steps(save_tiny_encoder(tmp_path / "m"))
    ours = embedder(folder, dims=8).encode(TEXTS)
    assert ours.shape == (len(TEXTS), 8)
    expected = theirs(folder, TEXTS)[:, :8]
    np.testing.assert_allclose(ours, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=2e-6)


def test_nothing_to_encode(tmp_path: Path) -> None:
    assert embedder(write_steps(save_tiny_encoder(tmp_path / "m"))).encode([]).shape == (0, 32)


def test_steps_that_are_not_done(tmp_path: Path) -> None:
    folder = write_steps(save_tiny_encoder(tmp_path / "m"))
    steps = json.loads((folder / "modules.json").read_text())
    steps[2]["type"] = "sentence_transformers.models.LSTM"
    (folder / "modules.json").write_text(json.dumps(steps))
    with pytest.raises(Unsupported, match="LSTM"):
        read_vector_settings(folder)


def test_missing_weights_are_an_error_but_not_those_of_the_unused_pooler(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_tiny_encoder(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    load_backbone(folder, dtype="float32")
    del kept[next(name for name in kept if "layer.1" in name)]
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileProblem, match="not in its files"):
        load_backbone(folder, dtype="float32")
