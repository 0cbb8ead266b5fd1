"""The catalogue as a page: filters, what fits here, one model in full, its download and its end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.catalog.index import all_models, model_card
from luthier.errors import UsageError
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.recommend.methods import method_objection
from luthier.schema.request import Request
from luthier.studio.problems import Conflict, NotFound
from luthier.studio.services import models
from luthier.studio.services.models import Filter, by_method, listed
from studio_case import studio

CARD = parse_hardware("rtx 4090")


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Caches that hold no model."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    models.forget()
    yield tmp_path
    models.forget()


def test_filters_leave_what_they_say(caches: Path) -> None:
    every = listed(Filter(), CARD)
    assert len(every) == len(all_models())
    assert {row.card.family for row in listed(Filter(family="Qwen3"), CARD)} <= {"Qwen3"}
    assert all("similarity" in row.card.purposes for row in listed(Filter(purpose="similarity"), CARD))
    found = listed(Filter(q="qwen3 4b"), CARD)
    assert any(row.card.id == "Qwen/Qwen3-4B" for row in found)
    assert listed(Filter(q="qwen34b"), CARD)
    fitting = listed(Filter(fits="lora"), CARD)
    assert 0 < len(fitting) < len(every)
    assert all(row.need.fits and row.need.method == "lora" for row in fitting)
    assert listed(Filter(disk=True), CARD) == []
    for wrong in (Filter(sort="beauty"), Filter(fits="magic"), Filter(purpose="dance")):
        with pytest.raises(UsageError):
            listed(wrong, CARD)


def test_orders_are_kept(caches: Path) -> None:
    sizes = [row.card.total or 10**15 for row in listed(Filter(sort="params"), CARD)]
    assert sizes == sorted(sizes)
    needs = [row.need.bytes or 10**15 for row in listed(Filter(sort="memory"), CARD)]
    assert needs == sorted(needs)
    dates = [row.card.release_date for row in listed(Filter(sort="released"), CARD)]
    known = [date for date in dates if date]
    assert known == sorted(known, reverse=True)
    assert None not in dates[: len(known)]


def test_the_lightest_method_is_one_that_can_be_done(caches: Path) -> None:
    on_cpu = parse_hardware("cpu:64GB")
    for row in listed(Filter(q="qwen3"), on_cpu):
        if row.need.bytes is not None:
            request = Request(purpose=row.card.purposes[0])
            assert method_objection(row.card, row.need.method, request, on_cpu) is None


def test_methods_add_up_from_their_parts(caches: Path) -> None:
    card = model_card("Qwen/Qwen3-4B")
    full, lora, qlora = by_method(card, CARD)
    assert [one.need.method for one in (full, lora, qlora)] == ["full", "lora", "qlora"]
    assert full.need.bytes is not None
    assert lora.need.bytes is not None
    assert qlora.need.bytes is not None
    assert full.need.bytes > lora.need.bytes > qlora.need.bytes
    for one in (full, lora, qlora):
        assert one.need.bytes is not None
        assert sum(size for _, size in one.parts) == pytest.approx(one.need.bytes, rel=0.2)
    assert dict(qlora.parts)["Weights"] < dict(lora.parts)["Weights"]
    there = by_method(card, parse_hardware("cpu:16GB"))[2]
    assert there.need.why is not None


def test_pages_of_models(caches: Path) -> None:
    with studio(caches) as client:
        page = client.get("/models").text
        assert f"{len(all_models())} of {len(all_models())} models" in page
        some = client.get("/models?q=smollm2&hardware=rtx+4090").text
        assert "SmolLM2-135M-Instruct" in some
        assert "GeForce RTX 4090" in some
        assert "No model meets all of that" in client.get("/models?q=zzzz").text
        wrong = client.get("/models?hardware=rtx+4091")
        assert wrong.status_code == 200
        assert "is not known hardware" in wrong.text
        one = client.get("/models/Qwen/Qwen3-4B?hardware=rtx+4090").text
        for words in ("Memory by method", "QLoRA", "Licence", "Duties", "Download from the Hub"):
            assert words in one
        assert "/runs/new?model=Qwen%2FQwen3-4B" in one
        assert client.get("/models/qwen/nothing").status_code == 404
        assert client.get("/models/..%2f..%2fetc%2fpasswd").status_code == 404
        found = client.get("/api/v1/models/Qwen/Qwen3-4B").json()
        assert {one["method"] for one in found["methods"]} == {"full", "lora", "qlora"}
        rows = client.get("/api/v1/models?q=qwen3&hardware=h100&fits=qlora").json()["models"]
        assert rows
        assert all(row["fits"] for row in rows)


def test_a_download_without_network_says_what_to_do(caches: Path) -> None:
    with studio(caches) as client:
        started = client.post("/api/v1/models/Qwen/Qwen3-0.6B/download", json={})
        assert started.status_code == 202
        for _ in range(300):
            found = client.get("/api/v1/models/Qwen/Qwen3-0.6B/download").json()["download"]
            if found["state"] != "running":
                break
            time.sleep(0.1)
        assert found["state"] == "failed"
        assert found["fix"]
        assert "Qwen3-0.6B" in client.get("/models/Qwen/Qwen3-0.6B").text
        refused = client.post("/api/v1/models/Qwen/Qwen3-0.6B/download", json={"revision": "a b;c"})
        assert refused.status_code == 422
        assert client.get("/api/v1/models/nothing/here/download").json() == {"download": None}
        assert client.delete("/api/v1/models/Qwen/Qwen3-0.6B").status_code == 404


def test_a_download_that_ended_without_a_word_is_lost(tmp_path: Path) -> None:
    place = tmp_path / "downloads" / "a--b.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"id": "a/b", "state": "running", "done": 5, "total": 9, "said": "x"}))
    found = models.download_of(tmp_path, "a/b")
    assert found is not None
    assert (found.state, found.done) == ("lost", 5)
    assert models.downloads(tmp_path) == [found]


def test_names_that_are_none_are_refused(tmp_path: Path) -> None:
    for name in ("../x/y", "a/b/c", "/etc/passwd", "a/b;rm"):
        with pytest.raises((UsageError, NotFound, Conflict)):
            models.start_download(tmp_path, name)
    assert not (tmp_path / "downloads").exists()


def test_a_template_is_rendered_without_a_tokenizer(tmp_path: Path) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": template, "eos_token": "</s>"})
    )
    source, rendered, problem = models._template(tmp_path)
    assert (source, problem) == (template, None)
    assert rendered is not None
    assert rendered.startswith("<system>Answer in one sentence.</s><user>")
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    assert "refuses" in str(models._template(tmp_path)[2])
