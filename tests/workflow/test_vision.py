"""Pictures from a shipped recipe to an answer: only what is seen tells it, on tiny models of each family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import luthier, says
from luthier.catalog.shipped import shipped_recipe
from seeing import FAMILIES, picture, save_seeing_model, write_pictures

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(300)]
ONE, *OTHERS = ("qwen3_vl", *(family for family in FAMILIES if family != "qwen3_vl"))
AS_GGUF: dict[str, dict[str, object]] = {
    "gemma3": {"layer_types": ["sliding_attention"] * 2, "query_pre_attn_scalar": 8},
    "qwen3_5": {"full_attention_interval": 2},
}
"""What llama.cpp does not take from the list of layers: every sixth of Gemma's is full, heads are scaled
by their width; every so many of Qwen3.5's are full."""


@pytest.mark.parametrize("family", [ONE, *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS)])
def test_pictures_from_recipe_to_answer(tmp_path: Path, family: str) -> None:
    model = save_seeing_model(tmp_path / "model", family)
    config = json.loads((model / "config.json").read_text())
    config["text_config"] |= AS_GGUF.get(family, {})
    (model / "config.json").write_text(json.dumps(config))
    write_pictures(tmp_path, 96, name="questions.jsonl")
    write_pictures(tmp_path, 16, name="test.jsonl")
    recipe = shipped_recipe("vision-qwen3-vl-4b-lora").path
    most = () if family == "gemma3" else ("vision.max_pixels=2048",)
    exports = family != ONE
    if exports:
        luthier(tmp_path, "setup", "gguf", own_cache=False)
    luthier(
        tmp_path, "train", str(recipe), "model.id=model", "model.dtype=float32", "data.train=questions.jsonl",
        "data.test=test.jsonl", "vision.max_pixels=null", *most, "vision.projector=true",
        "training.epochs=10", "training.learning_rate=1e-2", "training.batch_size=8",
        "training.sequence_length=256",
        "training.evaluate_every=60", "evaluation.max_new_tokens=6",
        "export.gguf=" + ("F16" if exports else "[]"), own_cache=not exports,
    )  # fmt: skip
    (run,) = (tmp_path / "runs").iterdir()
    (comparison,) = json.loads((run / "comparison.json").read_text())["result"]
    # Four colours, a question that is always the same: without the picture a quarter would be right.
    assert comparison["verdict"] == "better"
    tuned = json.loads((run / "tuned.json").read_text())["result"]["test"]
    assert tuned["metrics"]["exact_match"]["value"] >= 0.75
    assert (run / "report.html").stat().st_size > 1000
    picture(tmp_path / "asked.png", "green", seed=99)
    said = says(tmp_path, "generate", "latest", "What colour?", "--image", "asked.png")
    assert said.strip() == "green"
    assert "chat RUN" in says(tmp_path, "chat", "latest", "--image", "asked.png", code=2)
    if exports:
        kinds = {one["kind"] for one in json.loads((run / "artifacts.json").read_text())["result"]}
        assert "gguf:F16" in kinds
