"""Card, licence papers, checksums and space: what lies beside the weights."""

import json
import struct
import subprocess

import pytest
from huggingface_hub import ModelCard

from luthier.errors import DoesNotFit, FileProblem
from luthier.exporting.files import artifact_of, folder_digest, write_checksums
from luthier.exporting.licence_bundle import Provenance, permitted_name, write_licence_bundle
from luthier.exporting.model_card import CardFacts, render_model_card, write_model_card
from luthier.exporting.space import check_space, largest_gguf_size, parameter_count, plan_gguf_space
from luthier.files import write_text
from luthier.schema.licence import Licence
from luthier.schema.load import recipe_from
from luthier.schema.results import Artifact, Comparison, Difference, Metric, ParityCheck, TrainResult

APACHE = Licence(
    id="apache-2.0",
    name="Apache License 2.0",
    spdx="Apache-2.0",
    url="https://www.apache.org/licenses/LICENSE-2.0",
    osi_approved=True,
    commercial_use="yes",
    acceptable_use_policy=False,
    may_train_others="yes",
    attribution=True,
    notice="ship the licence text, keep copyright and NOTICE lines, state changes",
    redistribution="yes",
)
LLAMA = APACHE.model_copy(
    update={
        "id": "llama3.1",
        "name": "Llama 3.1 Community License Agreement",
        "spdx": None,
        "notice": "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta.",
        "name_prefix": "Llama",
        "naming": "derivatives begin with Llama",
        "display": "Built with Llama",
    }
)
CHANGES = "tuned with lora on chat data by Luthier"


def figure(value, width=0.05):
    return Metric(value=value, low=value - width, high=value + width, n=80)


def facts(tmp_path, **changes):
    recipe = recipe_from(
        {
            "name": "orders",
            "model": {"id": str(tmp_path / "secret" / "base")},
            "data": {
                "train": [str(tmp_path / "secret" / "train.jsonl")],
                "test": {"own": ["/home/x/test.jsonl"]},
            },
            "method": {"name": "lora", "rank": 8, "alpha": 16},
        }
    )
    difference = Difference(
        metric="exact_match",
        baseline=figure(0.1),
        tuned=figure(0.8),
        delta=figure(0.7),
        p_value=0.001,
        verdict="better",
        improved=60,
        regressed=2,
    )
    parity = ParityCheck(
        prompts=8,
        equal_token_ids=8,
        compared_tokens=200,
        equal_tokens=190,
        near_ties=1,
        mean_kl=0.0123,
        stops=True,
        passed=True,
    )
    values = {
        "name": "orders",
        "recipe": recipe,
        "provenance": Provenance("org/base", "abc123", APACHE, CHANGES),
        "train": TrainResult(
            steps=30,
            epochs=1.5,
            first_loss=2.0,
            last_loss=0.5,
            best_step=20,
            best_validation_loss=0.6,
            selected_checkpoint="checkpoints/20",
            seconds=90,
            tokens=9000,
            trained_tokens=4000,
            tokens_per_second=100,
            peak_memory=2**30,
            trainable_parameters=10,
            total_parameters=1000,
            device="cpu",
            dtype="float32",
        ),
        "comparisons": [
            Comparison(split="own", primary="exact_match", differences=(difference,), verdict="better")
        ],
        "artifacts": [
            Artifact(
                kind="gguf:Q4_K_M",
                path="artifacts/orders-Q4_K_M.gguf",
                bytes=105453920,
                sha256="0",
                parity=parity,
            )
        ],
        "data_summary": {"train rows": 800},
        "languages": ("en",),
        "hub_base": "org/base",
    }
    return CardFacts(**{**values, **changes})


def test_card_has_metadata_that_the_hub_reads(tmp_path):
    card = ModelCard(render_model_card(facts(tmp_path)))
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "org/base"
    assert card.data.pipeline_tag == "text-generation"
    assert {"luthier", "lora"} <= set(card.data.tags)
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("exact_match", 0.8, "own")


def test_card_says_what_was_measured_and_no_more(tmp_path):
    text = render_model_card(facts(tmp_path))
    assert "| own | exact_match | 80 | 0.100 [0.050, 0.150] | 0.800 [0.750, 0.850] | +0.700" in text
    assert "**better**" in text
    assert "| orders-Q4_K_M.gguf | 105.5 MB | 8/8 | 190/200 | 0.0123 | passed |" in text
    assert "LoRA (rank 8, alpha 16)" in text
    assert "train rows: 800" in text
    assert str(tmp_path) not in text
    assert "/home/x" not in text
    assert "train.jsonl" in text
    bare = render_model_card(facts(tmp_path, comparisons=(), artifacts=(), train=None, hub_base=None))
    assert "has not been measured" in bare
    assert "## Scores" not in bare
    assert "## Exports" not in bare
    assert ModelCard(bare).data.base_model is None


def test_unknown_and_unlisted_licences_are_said(tmp_path):
    unknown = render_model_card(facts(tmp_path, provenance=Provenance("org/base", None, None, CHANGES)))
    assert "not known" in unknown
    assert ModelCard(unknown).data.license is None
    odd = APACHE.model_copy(update={"id": "qwen-research", "name": "Qwen Research"})
    card = ModelCard(
        render_model_card(facts(tmp_path, provenance=Provenance("org/base", None, odd, CHANGES)))
    )
    assert (card.data.license, card.data.license_name) == ("other", "qwen-research")


def test_kind_of_weights_shows_in_the_metadata(tmp_path):
    def relation(kind):
        data = ModelCard(render_model_card(facts(tmp_path, kind=kind))).data
        return data.base_model_relation, data.library_name

    assert relation("adapter") == ("adapter", "peft")
    assert relation("gguf") == ("quantized", "gguf")
    assert relation("merged") == ("finetune", "transformers")


def test_new_tokens_are_named_with_what_an_adapter_asks_for(tmp_path):
    given = facts(tmp_path)
    recipe = given.recipe
    model = recipe.model.model_copy(update={"new_tokens": ("<tool>", "</tool>")})
    for kind in ("merged", "adapter"):
        text = render_model_card(
            facts(tmp_path, recipe=recipe.model_copy(update={"model": model}), kind=kind)
        )
        assert "- new tokens: `<tool>`, `</tool>`" in text
        assert ("resize_token_embeddings" in text) == (kind == "adapter")
    assert "new tokens" not in render_model_card(given)


def test_papers_of_the_base_go_along(tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    (base / "LICENSE").write_text("the licence's words")
    (base / "USE_POLICY.md").write_text("the policy")
    (base / "config.json").write_text("{}")
    written = write_licence_bundle(out, Provenance("org/base", "r1", LLAMA, CHANGES), base_dir=base)
    assert {path.name for path in written} == {"LICENSE", "USE_POLICY.md", "NOTICE.txt"}
    assert (out / "LICENSE").read_text() == "the licence's words"
    notice = (out / "NOTICE.txt").read_text()
    assert LLAMA.notice in notice
    assert CHANGES in notice
    assert "org/base (revision r1)" in notice
    assert "Built with Llama" in notice


def test_a_base_without_papers_gets_the_source_of_its_terms(tmp_path):
    write_licence_bundle(tmp_path, Provenance("org/base", None, APACHE, CHANGES), base_dir=None)
    assert APACHE.url in (tmp_path / "LICENSE.txt").read_text()
    write_licence_bundle(
        tmp_path / "x", Provenance("org/base", None, None, CHANGES), base_dir=tmp_path / "none"
    )
    assert "not known" in (tmp_path / "x" / "LICENSE.txt").read_text()


def test_a_notice_of_the_base_is_not_overwritten(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "NOTICE.txt").write_text("theirs")
    write_licence_bundle(tmp_path / "out", Provenance("org/base", None, APACHE, CHANGES), base_dir=base)
    assert (tmp_path / "out" / "NOTICE.txt").read_text() == "theirs"
    assert CHANGES in (tmp_path / "out" / "NOTICE.luthier.txt").read_text()


def test_names_follow_the_licence():
    assert permitted_name("orders", LLAMA) == "Llama-orders"
    assert permitted_name("llama-orders", LLAMA) == "llama-orders"
    assert permitted_name("orders", APACHE) == "orders"
    assert permitted_name("orders", None) == "orders"


def test_checksums_are_those_of_sha256sum(tmp_path):
    write_text(tmp_path / "a.txt", "a")
    write_text(tmp_path / "sub" / "b c.txt", "b")
    (tmp_path / ".hidden").write_text("x")
    sums = write_checksums(tmp_path)
    assert len(sums.read_text().splitlines()) == 2
    subprocess.run(["sha256sum", "-c", "--strict", sums.name], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "a.txt").write_text("changed")
    assert subprocess.run(["sha256sum", "-c", sums.name], cwd=tmp_path, capture_output=True).returncode != 0


def test_artifacts_are_described_relative_to_the_run(tmp_path):
    folder = tmp_path / "artifacts" / "merged"
    write_text(folder / "config.json", "{}")
    bare = folder_digest(folder, papers=False)
    first = artifact_of(folder, "merged", relative_to=tmp_path)
    assert (first.path, first.bytes) == ("artifacts/merged", 2)
    write_model_card(folder, facts(tmp_path))
    assert artifact_of(folder, "merged", relative_to=tmp_path).sha256 != first.sha256
    assert folder_digest(folder, papers=False) == bare
    write_text(folder / "config.json", "{ }")
    assert folder_digest(folder, papers=False) != bare
    with pytest.raises(FileProblem, match="lies outside"):
        artifact_of(folder, "merged", relative_to=tmp_path / "elsewhere")
    with pytest.raises(FileProblem, match="was not written"):
        artifact_of(folder / "nothing", "merged", relative_to=tmp_path)


def safetensors(path, shapes):
    header = json.dumps(
        {n: {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_sizes_come_from_the_headers(tmp_path):
    safetensors(tmp_path / "model-1.safetensors", {"a": [10, 20], "b": [7]})
    safetensors(tmp_path / "model-2.safetensors", {"c": [3, 3, 3], "__metadata__": []} | {"d": []})
    assert parameter_count(tmp_path) == 200 + 7 + 27 + 1
    (tmp_path / "tokenizer.json").write_text("x" * 1000)
    assert (
        largest_gguf_size(tmp_path, "Q4_K_M")
        < largest_gguf_size(tmp_path, "Q8_0")
        < largest_gguf_size(tmp_path, "F16")
    )
    assert set(plan_gguf_space(tmp_path, ["Q8_0"])) == {"Q8_0", "F16 (removed afterwards)"}
    assert set(plan_gguf_space(tmp_path, ["Q8_0", "F16"])) == {"Q8_0", "F16"}
    (tmp_path / "model-2.safetensors").write_bytes(b"torn")
    with pytest.raises(FileProblem, match="cut off"):
        parameter_count(tmp_path)


def test_no_room_is_said_with_numbers(tmp_path):
    check_space(tmp_path / "not" / "yet", {"F16": 10})
    with pytest.raises(DoesNotFit, match=r"needs 3.00 GB \(F16 2.00 GB, Q8_0 1.00 GB\) and 2.50 GB are free"):
        check_space(tmp_path, {"F16": 2_000_000_000, "Q8_0": 1_000_000_000}, free=2_500_000_000)


def test_scores_of_two_splits_stay_apart(tmp_path):
    one = facts(tmp_path).comparisons[0]
    other = one.model_copy(update={"split": "other"})
    card = ModelCard(render_model_card(facts(tmp_path, comparisons=[one, other])))
    assert [result.dataset_name for result in card.data.eval_results] == ["own", "other"]
