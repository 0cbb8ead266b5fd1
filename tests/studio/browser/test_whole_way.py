"""A person's whole way on a tiny model, by keyboard alone: from two files to a served model's answer."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import pytest

from luthier.runs.servers import list_servers, stop_server
from studio_browser import Server, logged_in
from tiny import save_tiny_model, write_rows

pytest.importorskip("xllamacpp", reason="pip install 'luthier[export]'")
pytestmark = pytest.mark.timeout(540)
SETTINGS = """\
evaluation.max_new_tokens=16
evaluation.max_rows=8
evaluation.probe_rows=0
evaluation.floor_rows=0
export.parity_prompts=2
training.warmup_share=0"""


class Keys:
    """A person with a keyboard and no mouse."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def to(self, selector: str, *, most: int = 160) -> None:
        """Press Tab until the focus is there."""
        self.page.wait_for_selector(selector, state="attached")
        for _ in range(most):
            if self.page.evaluate("(where) => document.activeElement?.matches(where) ?? false", selector):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"{most} tabs do not reach {selector} on {self.page.url}")

    def press(self, selector: str, key: str = "Enter") -> None:
        """Go there and press it."""
        self.to(selector)
        self.page.keyboard.press(key)

    def write(self, selector: str, text: str) -> None:
        """Go to a field and replace what it says."""
        self.to(selector)
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text)

    def choose(self, selector: str, words: str) -> None:
        """Go to a list and type until what is wanted is chosen."""
        self.to(selector)
        self.page.keyboard.type(words)
        chosen = self.page.eval_on_selector(selector, "(list) => list.selectedOptions[0].textContent")
        assert chosen.strip().startswith(words), f"{chosen!r} is chosen in {selector}"

    def visit(self, name: str) -> None:
        """A page by the sidebar, from the top."""
        self.page.evaluate("() => { document.activeElement.blur(); window.scrollTo(0, 0); }")
        self.press(f".side a[href='{name}']")
        self.page.wait_for_url(f"**{name}*")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An empty studio, with a tiny model and two files lying beside it."""
    folder = tmp_path_factory.mktemp("way")
    save_tiny_model(folder / "model")
    write_rows(folder / "chats.jsonl", 120)
    with (folder / "bank.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for n in range(60):
            rows.writerow([f"where is my card number {n}", ("card_arrival", "lost_card", "top_up")[n % 3]])
    server = Server(folder)
    server.start()
    yield server
    server.stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_SERVERS", server.environment["LUTHIER_SERVERS"])
        for one in list_servers():
            stop_server(one, patience=5)


@pytest.fixture
def keys(chromium: Any, server: Server) -> Iterator[Keys]:
    page = logged_in(chromium, server)
    yield Keys(page)
    page.context.close()
    assert page.watch.foreign == []


def test_from_files_to_answers_by_keyboard_alone(keys: Keys, server: Server) -> None:
    page = keys.page
    # Upload: the file dialog opens by Enter on the field.
    keys.visit("/datasets")
    with page.expect_file_chooser() as chooser:
        keys.press("#file")
    chooser.value.set_files([server.folder / "bank.csv", server.folder / "chats.jsonl"])
    page.wait_for_selector("#sets tbody tr:nth-child(2)")
    page.wait_for_function("() => !document.querySelector('#sets').textContent.includes('looking')")
    kinds = dict(zip(page.locator("#sets th a").all_inner_texts(),
                     page.locator("#sets td:nth-child(4)").all_inner_texts(), strict=True))  # fmt: skip
    assert kinds == {"bank.csv": "multi-class-classification", "chats.jsonl": "chat"}
    # Advise, and a plan from it.
    keys.visit("/advise")
    keys.choose("#data", "chats.jsonl")
    keys.press("form button.primary")
    keys.press("a.button[href*='/runs/new']")
    page.wait_for_url("**/runs/new?*")
    # The plan is for a model of the Hub: another one is here. Every change prices it again.
    keys.write("#model", str(server.folder / "model"))
    keys.choose("#method", "LoRA")
    keys.write("#rank", "4")
    keys.write("#learning_rate", "0.01")
    if page.locator("#steps").is_hidden():
        keys.press("#plan summary")
    keys.write("#steps", "30")
    keys.write("#name", "by-keys")
    keys.write("#settings", SETTINGS)
    page.wait_for_selector("#price button.primary:not([disabled])", timeout=60_000)
    page.locator("#made").get_by_text("by-keys").first.wait_for()
    # Run and watch: the page follows on its own.
    keys.press("#price button.primary")
    page.wait_for_url("**/runs/by-keys*", timeout=120_000)
    page.wait_for_selector(".u-wrap canvas", timeout=120_000)
    page.wait_for_function("() => document.querySelector('#state')?.textContent === 'done'", timeout=240_000)
    assert page.locator("#t-step").inner_text() == "30"
    run = page.url.rsplit("/", 1)[-1].split("?")[0]
    # Its verdict and its rows.
    keys.visit("/evals")
    keys.press(f"main a[href*='/evals/{run}']")
    page.wait_for_selector(".verdict-card")
    assert page.locator(".rows .row").count() == 8
    # Export: chosen by space, written by a job, held against the trained model.
    keys.visit("/exports")
    keys.press(f"main a[href*='/exports/{run}']")
    keys.press("input[value='F16']", "Space")
    keys.press("#export-form button.primary")
    page.locator("#files").locator("..").get_by_text("gguf:F16").first.wait_for(timeout=180_000)
    page.get_by_text("answers as trained").first.wait_for(timeout=60_000)
    # Compare base and tuned model.
    keys.visit("/compare")
    keys.write("#prompt", "the ball is red")
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/compare/2*")
    page.wait_for_selector("#turns:not([data-stream])", timeout=180_000)
    digests = page.locator("[data-weights]").all_inner_texts()
    assert len(digests) == 2
    assert len(set(digests)) == 2, "each answer states its own weights"
    assert page.locator(".error").count() == 0
    # Serve it, and chat.
    keys.visit("/serve")
    keys.write("#context", "128")
    keys.write("#slots", "1")
    keys.press("form[action='/serve'] button[type=submit]")
    page.wait_for_url("**/serve/*")
    page.wait_for_selector("textarea#prompt", timeout=120_000)
    keys.write("#prompt", "the hat is blue")
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/compare/2*")
    page.wait_for_selector("#turns:not([data-stream])", timeout=120_000)
    assert page.locator("[data-weights]").inner_text().startswith("weights ")
    assert page.locator(".error").count() == 0
