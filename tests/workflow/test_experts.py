"""A mixture of experts from the shipped recipe to an answer: adapters on experts, merged, exported, asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import luthier, says
from families import build
from luthier.catalog.shipped import shipped_recipe
from luthier.models.load import load_causal
from tiny import COLOURS, chat, save_tiny_model

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("family", "method"),
    [("Qwen3Moe", ()), ("Mixtral", ("method.experts=0,3", "method.router=true"))],
    ids=["all experts", "some experts and the routers"],
)
def test_experts_from_recipe_to_answer(tmp_path: Path, family: str, method: tuple[str, ...]) -> None:
    model = save_tiny_model(tmp_path / "model")
    build(family, vocab_size=384, max_position_embeddings=256, hidden_size=64).save_pretrained(model)
    things = [f"{size} hat {number}" for number in range(9) for size in ("old", "new")]
    rows = [chat(thing, colour) for thing in things for colour in COLOURS]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    luthier(tmp_path, "setup", "gguf", own_cache=False)
    luthier(
        tmp_path, "train", str(shipped_recipe("experts-qwen3-30b-a3b-lora").path), "model.id=model",
        "model.dtype=float32", "data.train=chats.jsonl", *method, "training.epochs=14",
        "training.learning_rate=5e-3", "training.batch_size=8", "training.sequence_length=64",
        "training.evaluate_every=60",
        "evaluation.max_new_tokens=16", "evaluation.floor_rows=0", "evaluation.probe_rows=0",
        "export.gguf=F16,Q8_0", own_cache=False,
    )  # fmt: skip
    (run,) = (tmp_path / "runs").iterdir()
    (comparison,) = json.loads((run / "comparison.json").read_text())["result"]
    assert comparison["verdict"] == "better"
    made = {one["kind"]: one for one in json.loads((run / "artifacts.json").read_text())["result"]}
    assert made.keys() == {"adapter", "merged", "gguf:F16", "gguf:Q8_0"}
    for kind in ("gguf:F16", "gguf:Q8_0"):
        parity = made[kind]["parity"]
        assert parity["passed"], parity["problems"]
        assert parity["equal_token_ids"] == parity["prompts"] > 3
    assert made["gguf:F16"]["parity"]["mean_kl"] < 1e-3
    said = says(tmp_path, "chat", "latest", "--once", "the old hat 3 is red")
    assert said.strip() == '{"colour":"red"}'
    base, merged = (load_causal(folder, dtype="float32") for folder in (model, run / "artifacts" / "merged"))
    changed = {
        number
        for name, weight in base.named_parameters()
        if name.endswith("experts.down_proj")
        for number in range(4)
        if not merged.get_parameter(name)[number].equal(weight[number])
    }
    assert changed == ({0, 3} if method else {0, 1, 2, 3})
    routers = [name for name, _ in base.named_parameters() if name.endswith("mlp.gate.weight")]
    assert routers
    for name in routers:
        assert merged.get_parameter(name).equal(base.get_parameter(name)) == (not method)
