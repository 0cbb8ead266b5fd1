"""Before a run, in Chromium: a file sent and mapped, models filtered, a plan priced at every keystroke."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from studio_rows import CHATS, lines

ROOT = Path(__file__).parents[3]
AXE = ROOT / ".cache" / "axe" / "axe.min.js"


@pytest.fixture
def data(opened: Any, server: Any, tmp_path: Path) -> tuple[Any, str]:
    """A page on a data set that was chosen as a person does, and the data set's URL."""
    page = opened()
    page.goto(f"{server.url}/datasets")
    file = tmp_path / "chats.jsonl"
    file.write_bytes(lines(CHATS))
    page.set_input_files("#file", str(file))
    page.wait_for_url(f"{server.url}/datasets/*", timeout=30_000)
    return page, page.url


def test_a_file_is_sent_mapped_and_looked_at(data: tuple[Any, str]) -> None:
    page, url = data
    assert page.get_by_role("heading", name="chats.jsonl").is_visible()
    assert page.get_by_text("Question 1?", exact=False).first.is_visible()
    page.get_by_role("link", name="Mapping").click()
    page.get_by_label("Learn", exact=True).select_option("last")
    page.get_by_text("not saved").wait_for()
    page.get_by_label("messages", exact=True).fill("nothing")
    page.get_by_text("the rows have no column 'nothing'").wait_for()
    page.get_by_label("messages", exact=True).fill("")
    page.locator("#sample .turn.trained").first.wait_for()
    page.get_by_role("button", name="Save").click()
    page.wait_for_load_state()
    assert page.get_by_label("Learn", exact=True).input_value() == "last"
    page.goto(f"{url}?tab=lengths")
    page.locator("svg.bars").wait_for(timeout=60_000)
    assert page.locator("svg.bars rect").count() > 3
    page.goto(f"{url}?tab=checks")
    page.get_by_text("60 rows read, 60 can be used").wait_for(timeout=60_000)


def test_a_broken_line_is_mended_without_anybody(opened: Any, server: Any, tmp_path: Path) -> None:
    page = opened()
    page.goto(f"{server.url}/datasets")
    rows = [{"text": f"{n} " + "word " * 40, "label": str(n % 3)} for n in range(20_000)]
    file = tmp_path / "labels.jsonl"
    file.write_bytes(lines(rows))
    half = file.stat().st_size // 2
    broken: list[str] = []

    def once(route: Any) -> None:
        headers = route.request.headers
        if not broken and headers.get("content-range", "").startswith("bytes 0-"):
            broken.append(headers["content-range"])
            # The first half arrives, then the line is cut.
            body = file.read_bytes()[:half]
            answer = page.request.put(
                route.request.url, data=body,
                headers={"content-range": f"bytes 0-{half - 1}/{file.stat().st_size}", "origin": server.url,
                         "upload-mark": headers["upload-mark"]},
            )  # fmt: skip
            assert answer.status == 202
            route.abort("connectionreset")
        else:
            route.continue_()

    page.route("**/api/v1/uploads/*", once)
    page.set_input_files("#file", str(file))
    page.wait_for_url(f"{server.url}/datasets/*", timeout=60_000)
    assert len(broken) == 1
    id_ = page.url.rstrip("/").rsplit("/", 1)[-1]
    known = json.loads((server.folder / "studio" / "uploads" / id_ / "dataset.json").read_text())
    assert known["bytes"] == file.stat().st_size
    assert known["purpose"] == "multi-class-classification"
    page.watch.complaints = [one for one in page.watch.complaints if "ERR_CONNECTION_RESET" not in one]


def test_what_is_no_data_is_refused_in_words(opened: Any, server: Any, tmp_path: Path) -> None:
    page = opened()
    page.goto(f"{server.url}/datasets")
    file = tmp_path / "lie.jsonl"
    file.write_bytes(gzip.compress(b'{"a": 1}' * 99))
    page.set_input_files("#file", str(file))
    page.get_by_text("compressed (.gz)").first.wait_for()
    page.watch.complaints = [one for one in page.watch.complaints if "415" not in one]


def test_models_are_filtered_as_one_types(opened: Any, server: Any) -> None:
    page = opened()
    page.goto(f"{server.url}/models")
    page.get_by_label("Search").fill("smollm2 135m")
    page.wait_for_url("**/models?q=smollm2*")
    expect(page.locator("#found tbody tr").nth(10)).to_have_count(0)
    assert page.locator("#found tbody tr").count() > 0
    assert page.evaluate("document.activeElement.id") == "q", "the focus stays where one types"
    page.go_back()
    expect(page.locator("#found tbody tr").nth(60)).to_be_visible()


def test_a_plan_is_priced_at_every_change(data: tuple[Any, str], server: Any) -> None:
    page, url = data
    id_ = url.rsplit("/", 1)[-1].split("?")[0]
    page.goto(f"{server.url}/runs/new?data={id_}&hardware=rtx+4090&model=Qwen/Qwen3-8B&method=full")
    page.locator("#price").get_by_text("too large").wait_for()
    expect(page.locator("#price")).not_to_contain_text("being counted", timeout=60_000)
    page.locator("#price").get_by_role("link", name="Apply: adapters instead of all weights").click()
    page.wait_for_url("**method=lora*")
    page.locator("#price .pill", has_text="fits").or_(
        page.locator("#price .pill", has_text="tight")
    ).first.wait_for()
    before = page.locator("#price .memory-figure").inner_text()
    page.get_by_label("Rank").fill("128")
    page.wait_for_url("**rank=128*")
    expect(page.locator("#price .memory-figure")).not_to_have_text(before)
    assert page.evaluate("document.activeElement.id") == "rank"
    page.locator("#made").get_by_text("rank: 128").wait_for()
    page.reload()
    assert page.get_by_label("Rank").input_value() == "128"
    assert page.get_by_role("button", name="Start run").is_disabled()


def test_advice_becomes_a_plan_by_keyboard(opened: Any, server: Any) -> None:
    page = opened()
    page.goto(f"{server.url}/advise?hardware=rtx+4090")
    page.get_by_label("What should the model do?").focus()
    page.keyboard.type("answer customers in our tone")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="How it was decided").wait_for()
    link = page.get_by_role("link", name="Make this plan")
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/new?*")
    page.locator("#price .memory-figure").wait_for()


@pytest.mark.skipif(not AXE.is_file(), reason="make test-browser brings axe")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_barrier_where_there_is_something(
    data: tuple[Any, str], opened: Any, server: Any, theme: str
) -> None:
    _, url = data
    id_ = url.rsplit("/", 1)[-1].split("?")[0]
    page = opened(theme=theme)
    found = []
    for path in (
        *(f"/datasets/{id_}?tab={tab}" for tab in ("preview", "mapping", "checks", "lengths", "tokens")),
        "/models/SmolLM2-135M-Instruct",
        "/advise?purpose=chat&hardware=rtx+4090",
        "/advise?purpose=chat&size=expert&hardware=cpu:4GB",
        f"/runs/new?data={id_}&model=Qwen/Qwen3-14B&hardware=rtx+4090&method=lora",
        "/runs/new?rank=x",
    ):
        page.goto(server.url + path)
        page.wait_for_timeout(150)
        page.evaluate(AXE.read_text(encoding="utf-8"))
        result = page.evaluate("axe.run({resultTypes: ['violations']})")
        found += [f"{path}: {one['id']}: {one['nodes'][0]['html'][:160]}" for one in result["violations"]]
    assert found == []


def test_a_phone_scrolls_one_way(data: tuple[Any, str], opened: Any, server: Any) -> None:
    _, url = data
    id_ = url.rsplit("/", 1)[-1].split("?")[0]
    page = opened(phone=True)
    for path in (
        *(f"/datasets/{id_}?tab={tab}" for tab in ("preview", "mapping", "checks", "lengths")),
        "/models/Qwen/Qwen3-8B",
        "/advise?purpose=chat&hardware=rtx+4090",
        f"/runs/new?data={id_}&model=Qwen/Qwen3-14B&hardware=rtx+4090&method=lora",
    ):
        page.goto(server.url + path)
        page.wait_for_timeout(150)
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over <= 0, path
