"""What a page of the studio weighs and takes, and what a tab costs its server.

``python benchmarks/studio/measure.py [--out results/FILE.jsonl]`` makes a run of 100,000 steps and
200 runs in a scratch folder, starts a studio over them and prints a line of JSON for each measurement. Times
are of this machine as busy as it is: the load stands beside them. Needs Chromium and ``make assets``, and
2 GB of disk for the upload.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import httpx2

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from luthier.runs.directory import RunDirectory  # noqa: E402
from luthier.runs.process import identity  # noqa: E402
from luthier.schema.run import Status  # noqa: E402
from luthier.studio.access import Access  # noqa: E402
from luthier.version import __version__  # noqa: E402
from studio_browser import CHROMIUM, FLAGS, Server, logged_in  # noqa: E402
from studio_case import made_run  # noqa: E402

PAGES = (
    "/", "/advise", "/models", "/models/Qwen/Qwen3-8B", "/datasets", "/runs/new", "/runs", "/runs/long",
    "/runs/run-000?tab=samples", "/sweeps", "/evals", "/compare", "/exports", "/registry", "/serve",
    "/settings",
)  # fmt: skip
STEPS = 100_000


def fill(folder: Path) -> RunDirectory:
    """200 runs, one of them long and at work."""
    for number in range(199):
        made_run(folder, f"run-{number:03}", steps=20)
    run = made_run(folder, "long", steps=1)
    line = {"time": 1.0, "kind": "step", "step": 0, "total_steps": 2 * STEPS, "epoch": 0.5, "loss": 2.0}
    line |= {"learning_rate": 1e-4, "grad_norm": 0.5, "tokens": 1024, "trained_tokens": 700}
    line |= {"memory": 10**9, "peak_memory": 10**9, "tokens_per_second": 100.0, "seconds_left": 9.0}
    with (run.path / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, STEPS + 1):
            file.write(json.dumps({**line, "step": step, "loss": 2 + 1 / step}, separators=(",", ":")) + "\n")
    run.set_status(Status(state="running", stage="train", step=STEPS, worker=identity()))
    return run


def cold(browser: Any, server: Server, path: str) -> dict[str, float]:
    """One page with an empty cache: bytes over the wire, first contentful paint, layout shift."""
    page = logged_in(browser, server)
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    sizes: list[int] = []
    session.on("Network.loadingFinished", lambda event: sizes.append(int(event["encodedDataLength"])))
    page.goto(server.url + path)
    page.wait_for_timeout(600)
    seen = page.evaluate(
        "() => new Promise((done) => { let sum = 0; new PerformanceObserver((list) => {"
        " for (const e of list.getEntries()) sum += e.value; })"
        ".observe({type: 'layout-shift', buffered: true}); setTimeout(() => done([sum,"
        " performance.getEntriesByName('first-contentful-paint')[0]?.startTime]), 100); })"
    )
    page.context.close()
    return {"bytes": sum(sizes), "first_contentful_paint_ms": round(seen[1] or 0), "layout_shift": seen[0]}


def long_run(browser: Any, server: Server, run: RunDirectory) -> dict[str, float]:
    """The run of 100,000 steps: until its curve stands, and what a live tab hears a second."""
    page = logged_in(browser, server)
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    heard: list[int] = []
    session.on(
        "Network.webSocketFrameReceived",
        lambda event: heard.append(len(event["response"]["payloadData"])),
    )
    took = []
    for _ in range(3):
        began = time.perf_counter()
        page.goto(f"{server.url}/runs/long")
        page.wait_for_selector(".u-wrap canvas")
        took.append(time.perf_counter() - began)
    heard.clear()
    seconds = 5
    for number in range(seconds * 10):
        values = {"kind": "step", "step": STEPS + 1 + number, "total_steps": 2 * STEPS, "loss": 1.9}
        run.append("metrics", {**values, "learning_rate": 1e-4, "grad_norm": 0.5, "memory": 10**9})
        page.wait_for_timeout(100)
    page.context.close()
    return {"seconds_until_its_curve": min(took), "bytes_a_second_at_10_steps_a_second": sum(heard) / seconds}


def tabs(browser: Any, server: Server, count: int) -> dict[str, float]:
    """Resident bytes of the server with so many live tabs."""
    before = server.memory()
    pages = [logged_in(browser, server)]
    pages[0].goto(f"{server.url}/runs/long?tab=log")
    for _ in range(count - 1):
        page = pages[0].context.new_page()
        page.goto(f"{server.url}/runs/long?tab=log")
        pages.append(page)
    pages[0].wait_for_timeout(2000)
    full = server.memory()
    for _ in range(5):
        page = pages[0].context.new_page()
        page.goto(f"{server.url}/runs/long?tab=log")
        pages.append(page)
    pages[0].wait_for_timeout(1000)
    more = server.memory()
    pages[0].context.close()
    return {"before": before, f"with_{count}": full, "each_further": (more - full) / 5}


def listing(browser: Any, server: Server) -> dict[str, float]:
    """Two hundred runs, from the request to the last byte, seen from the browser's side."""
    page = logged_in(browser, server)
    found = [
        page.evaluate(
            "async (path) => { const t = performance.now(); await (await fetch(path)).text();"
            " return performance.now() - t; }",
            path,
        )
        for path in ("/runs", "/runs?q=run-1", "/runs?status=done") * 3
    ]
    page.context.close()
    return {"median_ms": statistics.median(found), "best_ms": min(found)}


def upload(server: Server, size: int) -> dict[str, float]:
    """One file of so many bytes over the API: what the server's memory grows by while it arrives."""
    line = json.dumps({"prompt": "x" * 400, "completion": "y" * 80}).encode() + b"\n"
    block = line * (1 + (1 << 20) // len(line))
    count = size // len(block)
    highest, done = [server.memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            highest.append(server.memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    headers = {
        "authorization": f"Bearer {Access(server.folder / 'studio').token()}",
        "content-length": str(count * len(block)),
    }
    body = (block for _ in range(count))
    answer = httpx2.put(f"{server.url}/api/v1/uploads/big.jsonl", content=body, headers=headers, timeout=900)
    took = time.perf_counter() - began
    done.set()
    watcher.join()
    answer.raise_for_status()
    return {"bytes": count * len(block), "grew_by": max(highest) - highest[0], "seconds": took}


def restart(browser: Any, server: Server, run: RunDirectory) -> dict[str, float]:
    """The server killed and started under an open page: until the page shows what was written meanwhile."""
    page = logged_in(browser, server)
    page.goto(f"{server.url}/runs/long?tab=log")
    page.wait_for_timeout(500)
    server.kill()
    step = 3 * STEPS
    run.append("metrics", {"kind": "step", "step": step, "total_steps": 4 * STEPS, "loss": 1.8})
    began = time.perf_counter()
    server.start()
    up = time.perf_counter() - began
    page.wait_for_function(
        "(step) => document.querySelector('#t-step').textContent === step", arg=f"{step:,}", timeout=60_000
    )
    found = time.perf_counter() - began
    page.context.close()
    return {"seconds_until_it_answers": up, "seconds_until_the_page_goes_on": found}


def versions() -> dict[str, Any]:
    """What was measured with."""
    assert CHROMIUM is not None
    told = subprocess.run([CHROMIUM, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    names = ("fastapi", "uvicorn", "starlette", "jinja2", "playwright")
    found = {name: metadata.version(name) for name in names}
    return {"chromium": told, "python": platform.python_version(), **found, "luthier": __version__}


def main() -> None:
    """Measure and print."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tabs", type=int, default=20)
    parser.add_argument("--pages-only", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as play, contextlib.ExitStack() as open_:
        file = open_.enter_context(asked.out.open("a", encoding="utf-8")) if asked.out else None
        tell = partial(_tell, file)
        folder = Path(scratch)
        run = fill(folder)
        server = Server(folder)
        server.start()
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            tell("versions", versions())
            tell("server_at_start", {"bytes": server.memory()})
            if not asked.pages_only:
                tell("listing", listing(browser, server))
                tell("long", long_run(browser, server, run))
                tell("tabs", tabs(browser, server, asked.tabs))
                tell("restart", restart(browser, server, run))
            for path in PAGES:
                tell(path, cold(browser, server, path))
            if not asked.pages_only:
                tell("upload", upload(server, 1_000_000_000))
        finally:
            browser.close()
            server.stop()


def _tell(file: IO[str] | None, name: str, values: dict[str, Any]) -> None:
    """One line of JSON, with how busy the machine was."""
    line = json.dumps({"what": name, **values, "load": round(os.getloadavg()[0], 2)})
    print(line, flush=True)
    if file is not None:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
