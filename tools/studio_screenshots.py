"""Pictures of every page of the studio, over real runs, for docs/studio.md.

``python tools/studio_screenshots.py FOLDER [-o docs/pictures/studio]``: FOLDER holds ``runs/`` (best a copy:
a registry, conversations and uploads come beside it) and, if wished, ``rows/`` with files to upload. The run
that is served and compared is the newest with GGUF files, or ``--run``; with ``--train RUN`` a clone of that
run is really started, so that pages at work are seen too, and stopped at the end. Each picture holds a page
in the light and the dark theme and on a phone; ``--each`` writes whole pages, one file a look, to be looked
at. Needs Chromium, ``make assets`` and Pillow.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from luthier.studio.access import Access  # noqa: E402
from studio_browser import CHROMIUM, FLAGS, Server  # noqa: E402

DESKTOP, PHONE = (1360, 900), (390, 844)
SCALE = 0.62
"""Of a picture in the documents: pages are drawn at this scale, so their letters stay sharp."""
QUALITY = 30
GAP, GROUND = 12, (124, 136, 141)


def ask(server: Server, method: str, path: str, body: Any = None) -> Any:
    """One request to the studio's API with its token."""
    token = Access(server.folder / "studio").token()
    content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    answer = httpx2.request(method, server.url + path, content=content, headers=headers, timeout=600)
    answer.raise_for_status()
    return answer.json()


def until(words: str, is_so: Callable[[], bool], seconds: float = 300) -> None:
    """Wait for something that other processes do."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds:.0f} s: {words}")
        time.sleep(0.5)


def shipped(server: Server) -> str:
    """The newest run that has a GGUF file."""
    for run in sorted((server.folder / "runs").glob("*/artifacts.json"), key=lambda p: -p.stat().st_mtime):
        if ".gguf" in run.read_text(encoding="utf-8"):
            return run.parent.name
    raise SystemExit("no run with a GGUF file")


def fill(server: Server, run: str, train: str, wanted: list[str]) -> dict[str, str]:
    """Uploads, a version in the registry, a server at work, a run at work: names for the pages' addresses."""
    names = {"run": run}
    for file in sorted((server.folder / "rows").glob("*")):
        found = ask(server, "PUT", f"/api/v1/uploads/{quote(file.name)}", file.read_bytes())
        names["data"] = found["id"]
    if not ask(server, "GET", "/api/v1/registry")["models"]:
        ask(server, "POST", "/api/v1/registry", {"run": run, "name": "orders"})
    if train:
        ask(server, "POST", "/api/v1/jobs", {"kind": "train", "source": "clone", "run": train, "first": True})
        ask(server, "POST", "/api/v1/jobs", {"kind": "train", "source": "clone", "run": run, "name": "later"})
    if not {"server", "serve"} & set(wanted):
        return names
    asked = {"models": [f"orders={run}"], "gguf": "Q4_K_M", "context": 1024, "slots": 2}
    made = ask(server, "POST", "/api/v1/servers", asked)
    names["server"] = made["id"]
    until("ready", lambda: ask(server, "GET", f"/api/v1/servers/{made['id']}")["state"] != "loading")
    return names


def converse(page: Any, server: Server, run: str) -> str:
    """The last conversation; without one, base and tuned model are asked what a held-out row asks."""
    kept = sorted((server.folder / "studio" / "conversations").glob("*.json"))
    if kept:
        return f"/compare/{kept[-1].stem}"
    row = ask(server, "GET", f"/api/v1/evals/{run}/rows?only=improved&size=1")["rows"][0]
    page.goto(f"{server.url}/compare?run={run}")
    page.fill("#prompt", row["prompt"])
    page.press("#prompt", "Control+Enter")
    page.wait_for_url("**/compare/2*")
    page.wait_for_selector("#turns:not([data-stream])", timeout=300_000)
    return str(page.url).removeprefix(server.url)


def working(server: Server) -> str:
    """The run at work, once it has trained some steps."""
    found: list[str] = []

    def trains() -> bool:
        runs = ask(server, "GET", "/api/v1/runs?status=running")["runs"]
        found[:] = [one["id"] for one in runs if (one.get("step") or 0) >= 12]
        return bool(found)

    until("a run at work", trains, 900)
    return found[0]


def pages(names: dict[str, str]) -> dict[str, str]:
    """Name of the picture -> path."""
    run, data = names["run"], names.get("data", "")
    found = {
        "home": "/",
        "advise": "/advise?words=answer+customers+in+our+tone&purpose=chat&hardware=rtx+4090",
        "models": "/models",
        "model": "/models/Qwen/Qwen3-8B",
        "datasets": "/datasets",
        "dataset": f"/datasets/{data}?tab=mapping",
        "dataset-lengths": f"/datasets/{data}?tab=lengths",
        "new-run": f"/runs/new?data={data}&model=Qwen/Qwen3-14B&hardware=rtx+4090&method=lora",
        "runs": "/runs",
        "diff": f"/runs/diff?ids={names['others']}",
        "run": f"/runs/{names.get('working', run)}",
        "run-done": f"/runs/{run}",
        "run-samples": f"/runs/{run}?tab=samples",
        "run-batch": f"/runs/{run}?tab=batch",
        "run-checkpoints": f"/runs/{run}?tab=checkpoints",
        "run-config": f"/runs/{run}?tab=config",
        "run-log": f"/runs/{run}?tab=log",
        "run-environment": f"/runs/{run}?tab=environment",
        "run-failed": f"/runs/{names['failed']}",
        "sweeps": "/sweeps",
        "sweep": f"/sweeps/{names['sweep']}",
        "evaluations": "/evals",
        "evaluation": f"/evals/{run}",
        "compare": "/compare",
        "conversation": names.get("conversation", "/compare/"),
        "exports": "/exports",
        "export": f"/exports/{run}",
        "registry": "/registry",
        "registered": "/registry/orders",
        "serve": "/serve",
        "server": f"/serve/{names.get('server', '')}",
        "settings": "/settings",
        "login": "/login",
    }
    missing = [name for name, path in found.items() if path.endswith("/") and path != "/"]
    return {name: path for name, path in found.items() if name not in missing}


IN_DOCUMENTS = (
    "home", "advise", "models", "model", "datasets", "dataset", "new-run", "runs", "run", "run-samples",
    "run-batch", "run-failed", "sweep", "evaluation", "conversation", "export", "registered", "server",
    "settings", "login",
)  # fmt: skip
"""Pages whose pictures are kept; the others can be looked at with --each."""


def opened(browser: Any, server: Server, theme: str, *, phone: bool, scale: float) -> Any:
    """A logged-in page of one look."""
    width, height = PHONE if phone else DESKTOP
    size = {"width": width, "height": height}
    context = browser.new_context(viewport=size, color_scheme=theme, device_scale_factor=scale)
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(server.link())
    page.wait_for_url(f"{server.url}/")
    return page


def settle(page: Any) -> None:
    """Until nothing more comes: parts that are fetched after the page, charts that are drawn."""
    page.wait_for_timeout(500)
    page.wait_for_function("() => !document.querySelector('.htmx-request')")
    if page.locator("[data-chart]").count():
        page.wait_for_selector(".u-wrap canvas, [data-none]")
    page.wait_for_timeout(400)


def sheet(looks: list[bytes]) -> bytes:
    """Light, dark and phone side by side, as WebP."""
    from PIL import Image

    images = [Image.open(io.BytesIO(one)).convert("RGB") for one in looks]
    height = max(image.height for image in images)
    width = sum(image.width for image in images) + GAP * (len(images) - 1)
    whole = Image.new("RGB", (width, height), GROUND)
    left = 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width + GAP
    told = io.BytesIO()
    whole.save(told, "WEBP", quality=QUALITY, method=6)
    return told.getvalue()


def main() -> None:
    """Fill, look, write."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs" / "pictures" / "studio")
    parser.add_argument("--run", default="")
    parser.add_argument("--train", default="")
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--only", default="", help="names of pages, by comma")
    asked = parser.parse_args()
    server = Server(asked.folder.absolute())
    asked.out = asked.out.absolute()
    os.chdir(server.folder)
    server.start()
    os.environ["LUTHIER_SERVERS"] = str(server.folder / "servers")
    names: dict[str, str] = {}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            everything = list(pages(dict.fromkeys(("run", "others", "failed", "sweep"), "x")))
            wanted = asked.only.split(",") if asked.only else everything if asked.each else list(IN_DOCUMENTS)
            names = fill(server, asked.run or shipped(server), asked.train, wanted)
            runs = ask(server, "GET", "/api/v1/runs?limit=200")["runs"]
            names["others"] = ",".join(one["id"] for one in [r for r in runs if r["state"] == "done"][:2])
            names["failed"] = next((one["id"] for one in runs if one["state"] == "failed"), "")
            sweeps = sorted((server.folder / "runs" / "sweeps").glob("*/result.json"))
            names["sweep"] = sweeps[0].parent.name if sweeps else ""
            if "conversation" in wanted:
                first = opened(browser, server, "light", phone=False, scale=1)
                names["conversation"] = converse(first, server, names["run"])
                first.context.close()
            if asked.train:
                names["working"] = working(server)
            take(browser, server, pages(names), wanted, each=asked.each, out=asked.out.absolute())
        finally:
            for job in ask(server, "GET", "/api/v1/jobs")["jobs"]:
                ending = "cancel" if job["state"] in ("queued", "preparing") else "stop"
                if job["state"] in ("queued", "preparing", "running"):
                    ask(server, "POST", f"/api/v1/jobs/{job['id']}/{ending}")
            for one in ask(server, "GET", "/api/v1/servers")["servers"]:
                if one["state"] in ("ready", "loading"):
                    ask(server, "POST", f"/api/v1/servers/{one['id']}/stop")
            browser.close()
            server.stop()


def take(
    browser: Any, server: Server, found: dict[str, str], wanted: list[str], *, each: bool, out: Path
) -> None:
    """Every page in every look."""
    looks = {
        look: opened(
            browser,
            server,
            "dark" if look == "dark" else "light",
            phone=look == "phone",
            scale=1 if each else SCALE,
        )
        for look in ("light", "dark", "phone")
    }
    out.mkdir(parents=True, exist_ok=True)
    total = 0
    for name in wanted:
        if name not in found:
            print(f"{name}: left out, nothing to show", file=sys.stderr)
            continue
        shots = []
        for look, page in looks.items():
            page.goto(server.url + found[name])
            settle(page)
            shots.append(page.screenshot(full_page=each))
            if each:
                (out / f"{name}-{look}.png").write_bytes(shots[-1])
        if not each:
            picture = sheet(shots)
            (out / f"{name}.webp").write_bytes(picture)
            total += len(picture)
    if total:
        print(f"{len(wanted)} pictures, {total / 1000:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()
