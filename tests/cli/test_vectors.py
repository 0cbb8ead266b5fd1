"""``luthier embed``, ``luthier rerank`` and ``luthier data mine --by`` on tiny saved models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.cli.main import main
from tiny_encoders import rows_of, save_tiny_decoder, save_tiny_encoder, sentences, write_steps

TEXTS = sentences(40)


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as left:
        main(list(words))
    captured = capsys.readouterr()
    assert left.value.code == code, captured.err
    return captured.out


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as left:
        main([*words, "--json"])
    assert left.value.code == 2
    captured = capsys.readouterr()
    found: dict[str, Any] = json.loads(captured.out or captured.err)["error"]
    return found


def test_embed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_steps(save_tiny_encoder(tmp_path / "m"), query="query: ")
    rows = rows_of(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    out = tmp_path / "v.npy"
    found = json.loads(said(capsys, "embed", str(model), "--file", str(rows), "-o", str(out), "--json"))
    assert (found["texts"], found["dims"]) == (40, 32)
    vectors = np.load(out)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    short = json.loads(
        said(capsys, "embed", str(model), TEXTS[0], "--role", "query", "--dims", "8", "--json")
    )
    assert np.array(short["vectors"]).shape == (1, 8)
    assert not np.allclose(short["vectors"][0], vectors[0, :8] / np.linalg.norm(vectors[0, :8]), atol=1e-3)
    shown = said(capsys, "embed", str(model), "the red ball", "the red ball", "old")
    assert shown.count("1.000") == 5, "each text with itself, and two that are the same"
    assert "cannot" not in shown


def test_rerank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    base = save_tiny_encoder(tmp_path / "m")
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(tmp_path / "r")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "r" / name).write_bytes((base / name).read_bytes())
    asked = ("rerank", str(tmp_path / "r"), "--query", "red ball", *TEXTS[:4])
    found = json.loads(said(capsys, *asked, "--json"))["ranking"]
    assert sorted(one["document"] for one in found) == [0, 1, 2, 3]
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert len(said(capsys, *asked, "--top", "2").splitlines()) == 2
    problem = failed(capsys, "rerank", str(base), "--query", "red", "a ball")
    assert "no head that scores pairs" in problem["message"]


def test_mining_with_an_embedder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_steps(save_tiny_decoder(tmp_path / "m"), pooling="lasttoken", query="query: ")
    pairs = [{"query": TEXTS[i], "positive": TEXTS[i + 20]} for i in range(20)]
    mined = tmp_path / "mined.jsonl"
    words = (
        "data",
        "mine",
        str(rows_of(tmp_path / "p.jsonl", pairs)),
        "--to",
        str(mined),
        "--negatives",
        "2",
    )
    report = json.loads(said(capsys, *words, "--most-of-positive", "2", "--by", str(model), "--json"))
    assert report["by"] == f"vectors of {model}"
    rows = [json.loads(line) for line in mined.read_text().splitlines()]
    assert len(rows) == 20
    assert all(row["positive"] not in row["negatives"] for row in rows)
    assert sum(len(row["negatives"]) for row in rows) >= 20
    by_words = tmp_path / "words.jsonl"
    said(capsys, *words[:4], str(by_words), *words[5:], "--json")
    assert by_words.read_text() != mined.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("embed", "nowhere-at-all"), "there is no text"),
        (("embed", "nowhere-at-all", " "), "a text is empty"),
        (("embed", "nowhere-at-all", "a", "--out", "v.csv"), "vectors are written as .npy"),
        (("embed", "nowhere-at-all", "a", "--dims", "0"), "a vector has at least one number"),
        (("rerank", "nowhere-at-all", "a", "--query", " "), "the query is empty"),
        (("rerank", "nowhere-at-all", "a", "--query", "q", "--top", "0"), "show at least one"),
    ],
)
def test_wrong_words(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in failed(capsys, *words)["message"]
