"""Plans priced by the formula: what fits, what would, what is wrong, and the way to a start."""

from __future__ import annotations

import json
import re
import time
from html import unescape
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from starlette.datastructures import QueryParams

from luthier.errors import UsageError
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.resolve import resolve
from luthier.schema.load import load_recipe, recipe_from
from luthier.studio.pages.new_run import wish_of
from luthier.studio.services import inspection, planning
from luthier.studio.services.datasets import dataset
from luthier.studio.services.jobs import AskedJob
from luthier.studio.services.planning import KEYS, Wish, plan
from studio_case import made_run, studio
from studio_rows import CHATS, lines, made

HERE = parse_hardware("rtx 4090")
SMALL = parse_hardware("cpu:16GB")


def priced(folder: Path, **wish: object) -> planning.Plan:
    return plan(Wish.model_validate(wish), uploads=folder, here=HERE)


def counted(folder: Path) -> str:
    known = made(folder, "chats.jsonl", lines(CHATS))
    key = inspection.key_of(known, None, None)
    assert inspection.main([str(folder), known.id, key, "", ""]) == 0
    return known.id


def test_a_price_is_what_the_planner_says(tmp_path: Path) -> None:
    found = priced(tmp_path, model="Qwen/Qwen3-4B", method="qlora", rank=32, data=counted(tmp_path))
    assert found.problem is None
    assert found.fits
    assert found.recipe is not None
    assert found.resolved is not None
    assert found.memory is not None
    rows, _, counting = planning._lengths(
        found.wish, tmp_path, dataset(tmp_path, str(found.wish.data)), found.recipe
    )
    assert not counting
    again = resolve(found.recipe, arch=planning.shape_of("Qwen/Qwen3-4B"), hardware=HERE, profile=rows)
    assert again.estimate.process == found.memory
    assert again.recipe == found.resolved.recipe
    assert sum(size for _, size in found.parts) == pytest.approx(found.memory.expected, rel=0.01)
    assert (rows.train.count, found.rows) == (51, 51)
    assert found.duties


def test_pricing_takes_milliseconds(tmp_path: Path) -> None:
    id_ = counted(tmp_path)
    priced(tmp_path, model="Qwen/Qwen3-8B", data=id_)
    best = min(
        priced(tmp_path, model="Qwen/Qwen3-8B", data=id_, rank=rank).milliseconds for rank in (8, 16, 32, 64)
    )
    assert best < 250, "a busy machine takes longer than an idle one, but not this long"


def test_what_does_not_fit_says_by_how_much_and_what_would(tmp_path: Path) -> None:
    found = priced(tmp_path, model="Qwen/Qwen3-8B", method="full", data=counted(tmp_path))
    assert not found.fits
    assert found.memory is not None
    assert found.over == pytest.approx(found.memory.high - found.budget)
    assert found.problem is not None
    assert "over by" in found.problem
    helping = [fix for fix in found.fixes if fix.helps]
    assert helping
    assert helping == list(found.fixes[: len(helping)])
    for fix in helping:
        mended = plan(found.wish.model_copy(update=fix.values), uploads=tmp_path, here=HERE)
        assert mended.fits, fix.words


def test_weights_on_the_host_stand_beside_the_main_figures(tmp_path: Path) -> None:
    asked = {"model": "Qwen/Qwen3-14B", "method": "lora", "hardware": "rtx 4090"}
    found = priced(tmp_path, **asked)
    assert found.fits
    assert found.resolved is not None
    assert found.resolved.recipe.training.offload_parameters
    assert 24e9 < found.away < 29e9  # most of 14.8 thousand million weights, in 16 bits
    assert found.away_why
    with studio(tmp_path) as client:
        text = unescape(client.get("/runs/new", params=asked).text)
        small = client.get("/runs/new", params=asked | {"method": "qlora"}).text
    [said] = re.findall(r'<p class="notice" id="away">(.*?)</p>', text)
    size = f"{found.away / 2**30:.2f} GiB"
    assert said == f"{size} of frozen weights wait in the host's memory because {found.away_why}."
    assert "twice from the host" in said
    assert 'id="away"' not in small


def test_every_fix_saves_what_it_says(tmp_path: Path) -> None:
    found = priced(
        tmp_path,
        model="Qwen/Qwen3-8B",
        method="qlora",
        data=counted(tmp_path),
        micro=4,
        batch=8,
        checkpointing="none",
    )
    assert found.fits
    assert found.fixes
    for fix in found.fixes:
        assert fix.saves > 0
        assert set(fix.values) <= {*KEYS, "method"}
        less = plan(found.wish.model_copy(update=fix.values), uploads=tmp_path, here=HERE)
        assert less.memory is not None
        # What takes the cut to one row at a time as well is priced with it, and says so by its saving.
        assert less.expected <= found.expected


def test_wishes_become_settings_of_a_recipe(tmp_path: Path) -> None:
    id_ = counted(tmp_path)
    wish = Wish(
        model="Qwen/Qwen3-4B", data=id_, method="qlora", rank=8, alpha=16, epochs=2, learning_rate=1e-4,
        batch=4, micro=2, length=512, over="truncate", checkpointing="full",
        optimizer="adamw-8bit",
        patience=3, seed=5, gguf=("Q4_K_M",), merged=False, name="mine",
        settings=("training.warmup_share=0.1",),
    )  # fmt: skip
    recipe = planning.recipe_of(wish, tmp_path)
    assert (recipe.name, recipe.seed, recipe.method.name) == ("mine", 5, "qlora")
    assert (recipe.training.batch_size, recipe.training.micro_batch_size) == (4, 2)
    assert (recipe.training.learning_rate, recipe.training.warmup_share) == (1e-4, 0.1)
    assert recipe.export is not None
    assert (recipe.export.gguf, recipe.export.merged) == (("Q4_K_M",), False)
    text = planning.recipe_text(recipe)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert load_recipe(path) == recipe, "the copyable recipe is the recipe"
    assert YAML(typ="safe").load(text)["training"]["learning_rate"] == 1e-4
    assert planning.recipe_of(Wish(model="Qwen/Qwen3-4B", data=id_), tmp_path).name == "qwen3-4b-chats-lora"


def test_data_decide_what_the_model_is_for(tmp_path: Path) -> None:
    labels = made(
        tmp_path, "l.csv", b"text,label\n" + b"".join(b"hello %d,%d\n" % (n, n % 2) for n in range(40))
    )
    pairs = made(
        tmp_path, "p.jsonl", lines([{"prompt": f"{n}", "chosen": "b", "rejected": "c"} for n in range(9)])
    )
    recipe = planning.recipe_of(Wish(model="answerdotai/ModernBERT-base", data=labels.id), tmp_path)
    assert (recipe.task, recipe.method.name, recipe.preference) == (
        "multi-class-classification",
        "full",
        None,
    )
    recipe = planning.recipe_of(Wish(model="Qwen/Qwen3-4B", data=pairs.id), tmp_path)
    assert recipe.task == "chat"
    assert recipe.preference is not None
    refused = priced(tmp_path, model="answerdotai/ModernBERT-base", data=pairs.id)
    assert refused.problem is not None
    assert "encoder" in refused.problem


def test_presets_take_the_tables_other_rows(tmp_path: Path) -> None:
    id_ = counted(tmp_path)
    quick, best = (
        priced(tmp_path, model="Qwen/Qwen3-4B", data=id_, preset=name) for name in ("quick", "best")
    )
    assert quick.recipe is not None
    assert best.recipe is not None
    assert quick.resolved is not None
    assert (quick.recipe.method.rank, best.recipe.method.rank) == (8, 32)  # type: ignore[union-attr]
    assert quick.resolved.recipe.training.epochs == 1
    assert "quick" in quick.resolved.recipe.sources["training.epochs"]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"model": "qwen/quen3-8b"}, "did you mean"),
        ({"model": "Qwen/Qwen3-4B", "settings": ("training.epoch=2",)}, "epoch"),
        ({"model": "Qwen/Qwen3-4B", "settings": ("nonsense",)}, "not a setting"),
        ({"model": "Qwen/Qwen3-4B", "hardware": "rtx 4091"}, "not known hardware"),
        ({"model": "Qwen/Qwen3-4B", "batch": 5, "micro": 2}, "multiple"),
        ({"model": "Qwen/Qwen3-4B", "data": "0" * 16}, "no data set"),
        ({"model": "Qwen/Qwen3-4B", "length": 90_000_000}, "context"),
        ({}, "choose a model"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_raised(
    tmp_path: Path, wish: dict[str, object], words: str
) -> None:
    found = priced(tmp_path, **wish)
    assert not found.fits
    assert words in f"{found.problem} {found.fix}"


def test_a_licence_that_forbids_it_is_named(tmp_path: Path) -> None:
    found = priced(tmp_path, model="Qwen/Qwen2.5-3B-Instruct", settings=("licence.use=commercial",))
    assert found.problem is not None
    assert "licence" in found.problem.lower() or "commercial" in found.problem.lower()


def test_the_url_is_the_form() -> None:
    wish = wish_of(
        QueryParams(
            "model=a/b&dataset=0123456789abcdef&gguf=Q8_0&gguf=F16&rank=&settings=seed%3D1%0Aname%3Dx"
        )
    )
    assert (wish.model, wish.data, wish.gguf, wish.rank) == ("a/b", "0123456789abcdef", ("Q8_0", "F16"), None)
    assert wish.settings == ("seed=1", "name=x")
    assert (wish.patience, wish_of(QueryParams("patience=")).patience) == (3, None)
    for wrong in ("rank=x", "rank=0", "unknown=1", "method=magic"):
        with pytest.raises(UsageError):
            wish_of(QueryParams(wrong))


def test_the_page_prices_and_can_start(tmp_path: Path) -> None:
    with studio(tmp_path) as client:
        assert "Choose a model" in client.get("/runs/new").text
        id_ = client.put("/api/v1/uploads/chats.jsonl", content=lines(CHATS)).json()["id"]
        url = f"/runs/new?model=Qwen/Qwen3-0.6B&data={id_}&hardware=rtx+4090"
        for _ in range(200):
            page = client.get(url).text
            if "being counted" not in page:
                break
            time.sleep(0.1)
        assert "Predicted memory" in page
        assert "Activations" in page
        assert "This is priced for other hardware" in page
        assert 'id="price"' in page
        assert page.count("<h1") == 1
        yaml = client.get(f"/runs/new/recipe.yaml?model=Qwen/Qwen3-0.6B&data={id_}")
        assert yaml.headers["content-disposition"] == 'attachment; filename="qwen3-0-6b-chats-lora.yaml"'
        bad = client.get("/runs/new?rank=x")
        assert bad.status_code == 200
        assert "rank:" in bad.text
        answer = client.post(
            "/api/v1/plan", json={"model": "Qwen/Qwen3-0.6B", "data": id_, "hardware": "rtx 4090"}
        )
        found = answer.json()
        assert found["fits"]
        assert found["recipe"]["data"]["train"][0].endswith("rows.jsonl")
        assert sum(found["parts"].values()) == pytest.approx(found["memory"]["expected"], rel=0.01)
        assert client.post("/api/v1/plan", json={"modle": "x"}).status_code == 422
        assert client.post("/api/v1/plan", json={"model": "x", "price": "nan"}).status_code == 422


def test_a_run_is_the_start_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    with studio(tmp_path) as client:
        run = made_run(
            tmp_path,
            model={"id": "Qwen/Qwen3-0.6B"},
            method={"name": "lora", "rank": 24},
            training={"epochs": 2},
        )
        page = client.get(f"/runs/new?from={run.id}&hardware=rtx+4090&learning_rate=1e-5").text
        assert run.id in page
        assert "rank: 24" in page
        assert "learning_rate: 1e-05" in page or "learning_rate: 0.00001" in page
        assert "Predicted memory" in page
        assert '<option value="">as in the run</option>' in page.split('id="test"')[1]
        assert "none checked: as in the run" in page
        afresh = client.get("/runs/new?model=Qwen/Qwen3-0.6B&hardware=rtx+4090").text
        assert "as in the run" not in afresh


def test_a_dry_run_says_what_a_start_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with studio(tmp_path) as client:
        folder = tmp_path / "model"
        folder.mkdir()
        id_ = client.put("/api/v1/uploads/chats.jsonl", content=lines(CHATS)).json()["id"]
        answer = client.post("/runs/new/dry", data={"query": f"model=Qwen/Qwen3-0.6B&data={id_}"})
        assert answer.status_code == 303
        where = answer.headers["location"].split("#")[0]
        for _ in range(300):
            page = client.get(where).text
            if "would not start" in page:
                break
            time.sleep(0.2)
        assert "it would not start" in page
        assert "Qwen/Qwen3-0.6B" in page
        assert client.post("/runs/new/dry", data={"query": "model="}).status_code == 422
        assert json.loads(client.get("/api/v1/openapi.json").text)["paths"]["/api/v1/plan"]


@pytest.mark.parametrize(
    "odd", ["~nosuchuser", "~nosuchuser/x", "x" * 5000, "a\0b", "/" + "b" * 300, "/etc", "💥", "../..", "\n"]
)
def test_names_that_no_system_has_are_refused_in_words(tmp_path: Path, odd: str) -> None:
    with studio(tmp_path) as client:
        for field in ("model", "from_run", "revision", "hardware", "name"):
            body = {"model": "Qwen/Qwen3-0.6B", "hardware": "rtx 4090", field: odd}
            assert client.post("/api/v1/plan", json=body).status_code in (200, 422), field
            assert client.get("/runs/new", params=body).status_code == 200, field
        assert client.post("/api/v1/datasets", json={"path": odd}).status_code == 422
        assert client.get("/runs/new", params={"dry": odd}).status_code == 200


def test_the_buttons_hand_the_plan_to_the_queue(tmp_path: Path) -> None:
    """What Start run sends is a job of the queue, and its recipe is the one that was priced."""
    with studio(tmp_path) as client:
        id_ = client.put("/api/v1/uploads/chats.jsonl", content=lines(CHATS)).json()["id"]
        page = client.get(f"/runs/new?model=Qwen/Qwen3-0.6B&data={id_}&rank=4&method=lora").text
        bodies = [json.loads(unescape(one)) for one in re.findall(r"data-body='([^']+)'", page)]
        assert len(bodies) == 3
        wish = wish_of(QueryParams(f"model=Qwen/Qwen3-0.6B&data={id_}&rank=4&method=lora"))
        recipe = planning.recipe_of(wish, tmp_path / "studio" / "uploads")
        for body in bodies:
            asked = AskedJob.model_validate(body)
            assert recipe_from(dict(asked.recipe or {})) == recipe
        assert [body["first"] for body in bodies] == [True, False, True]
        trial = recipe_from(bodies[2]["recipe"], bodies[2]["overrides"])
        assert (trial.training.max_steps, trial.name) == (3, f"{recipe.name}-trial")


def test_several_gpus_are_a_field_where_there_are_several(tmp_path):
    with studio(tmp_path) as client:
        one = client.get("/runs/new?model=Qwen/Qwen3-4B&method=lora&hardware=h100").text
        two = client.get("/runs/new?model=Qwen/Qwen3-4B&method=lora&hardware=2xh100&devices=2&batch=16").text
    assert "GPUs together" not in one
    assert "GPUs together" in two
    assert "devices: 2" in two
