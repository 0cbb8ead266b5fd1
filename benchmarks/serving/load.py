"""A served model under load: errors, first token against bare llama.cpp, memory, bad clients.

    python benchmarks/serving/load.py MODEL.gguf [--requests 1000] [--at-once 32] [--out FILE]

Starts `luthier serve` on the file. First tokens are measured one request at a time, the gateway and the
llama.cpp behind it by turns, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import psutil

from luthier.version import __version__

KEY = "load"
LIBRARIES = ("starlette", "uvicorn", "httpx2", "xllamacpp")
CHAT = "/v1/chat/completions"


def start(model: Path, slots: int) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    words = ["serve", f"m={model}", "--port", "0", "--slots", str(slots), "--context", "1024", "--json"]
    child = subprocess.Popen(
        [sys.executable, "-m", "luthier", *words],
        stdout=subprocess.PIPE,
        env={**os.environ, "LUTHIER_API_KEY": KEY},
        text=True,
    )
    assert child.stdout is not None
    text = ""
    while not text.rstrip().endswith("\n}"):
        line = child.stdout.readline()
        if not line:
            raise SystemExit("the server did not start")
        text += line
    return child, json.loads(text)


def memory(child: subprocess.Popen[str]) -> dict[str, int]:
    gateway = psutil.Process(child.pid)
    return {
        "gateway": gateway.memory_info().rss,
        "model": sum(p.memory_info().rss for p in gateway.children(recursive=True)),
    }


def body(draw: random.Random, *, stream: bool = False, most: int = 16) -> dict[str, Any]:
    words = " ".join(draw.choice(("table", "lamp", "river", "seven", "blue", "north")) for _ in range(20))
    return {
        "model": "m",
        "messages": [{"role": "user", "content": f"Say something about {words}."}],
        "max_tokens": most,
        "temperature": 0,
        "stream": stream,
    }


async def first_token(http: httpx2.AsyncClient, asked: dict[str, Any]) -> float:
    began = time.perf_counter()
    async with http.stream("POST", CHAT, json=asked) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and '"content":"' in line.replace('": "', '":"'):
                return time.perf_counter() - began
    raise AssertionError("no token came")


async def first_tokens(base: str, model: Path, rounds: int) -> dict[str, Any]:
    """Gateway and bare llama.cpp by turns, the same prompts, each on a server of its own."""
    from luthier.llamacpp.runtime import LlamaServer, ServerSettings

    draw = random.Random(1)
    through: list[float] = []
    bare: list[float] = []
    with LlamaServer(model, ServerSettings(context=1024, slots=4)) as server:
        async with (
            client(base.removesuffix("/v1"), KEY) as ours,
            client(server.url, server.api_key) as theirs,
        ):
            for turn in range(rounds + 3):
                asked = body(draw, stream=True, most=2)
                pair = [(ours, through), (theirs, bare)]
                for http, times in pair if turn % 2 else reversed(pair):
                    seconds = await first_token(http, asked)
                    if turn >= 3:
                        times.append(seconds)
    ratios = [a / b for a, b in zip(through, bare, strict=True)]
    return {
        "rounds": rounds,
        "through_ms": statistics.median(through) * 1000,
        "bare_ms": statistics.median(bare) * 1000,
        "ratio_of_medians": statistics.median(through) / statistics.median(bare),
        "median_ratio": statistics.median(ratios),
    }


def client(base: str, key: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        base_url=base, headers={"Authorization": f"Bearer {key}"}, timeout=300, trust_env=False
    )


async def load(base: str, requests: int, at_once: int, child: subprocess.Popen[str]) -> dict[str, Any]:
    gate, draw = asyncio.Semaphore(at_once), random.Random(2)
    statuses: dict[str, int] = {}
    seconds: list[float] = []
    held: list[dict[str, int]] = []

    async with client(base.removesuffix("/v1"), KEY) as http:

        async def one(number: int) -> None:
            asked = body(draw, stream=number % 2 == 0)
            async with gate:
                began = time.perf_counter()
                try:
                    answer = await http.post(CHAT, json=asked)
                    ended = answer.status_code != 200 or answer.text.rstrip().endswith("[DONE]")
                    whole = ended if asked["stream"] else answer.json()
                    key = str(answer.status_code) if whole else f"torn: {answer.text[-200:]}"
                    if answer.status_code != 200:
                        key += f": {answer.text[:200]}"
                except httpx2.HTTPError as error:
                    key = type(error).__name__
                seconds.append(time.perf_counter() - began)
            statuses[key] = statuses.get(key, 0) + 1
            if number % 100 == 99:
                held.append(memory(child))

        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(requests)))
        wall = time.perf_counter() - began
    seconds.sort()
    return {
        "requests": requests,
        "at_once": at_once,
        "statuses": statuses,
        "wall_seconds": wall,
        "median_seconds": seconds[len(seconds) // 2],
        "p99_seconds": seconds[int(len(seconds) * 0.99)],
        "memory": held,
    }


async def bad_clients(base: str) -> dict[str, Any]:
    """What misbehaves gets its status; what leaves gives its slot back."""
    draw = random.Random(3)
    async with client(base.removesuffix("/v1"), KEY) as http:
        seen = {
            "bad JSON": (await http.post(CHAT, content=b"{")).status_code,
            "9 MiB body": (await http.post(CHAT, content=b" " * (9 << 20))).status_code,
            "unknown model": (await http.post(CHAT, json={**body(draw), "model": "x"})).status_code,
            "too long": (
                await http.post(
                    CHAT, json={**body(draw), "messages": [{"role": "user", "content": "a " * 5000}]}
                )
            ).status_code,
            "wrong key": (
                await http.post(CHAT, json=body(draw), headers={"Authorization": "Bearer x"})
            ).status_code,
            "foreign host": (
                await http.post(CHAT, json=body(draw), headers={"Host": "evil.example"})
            ).status_code,
        }
        for _ in range(50):  # killed in the middle of a stream
            async with http.stream("POST", CHAT, json=body(draw, stream=True, most=400)) as answer:
                async for _line in answer.aiter_lines():
                    break
        began = time.perf_counter()
        after = (await http.post(CHAT, json=body(draw))).status_code
    return {**seen, "after 50 clients that left": after, "its_seconds": time.perf_counter() - began}


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    child, said = start(arguments.model, 4)
    try:
        before = memory(child)
        first = await first_tokens(said["url"], arguments.model, 40)
        under = await load(said["url"], arguments.requests, arguments.at_once, child)
        bad = await bad_clients(said["url"])
        after = memory(child)
    finally:
        child.send_signal(signal.SIGTERM)
    return {
        "first_token": first,
        "load": under,
        "bad_clients": bad,
        "memory_before": before,
        "memory_after": after,
        "exit_code": child.wait(timeout=60),
        "predicted": next(iter(said["models"].values())),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {"luthier": __version__, **{name: version(name) for name in LIBRARIES}},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = json.dumps(asyncio.run(measure(arguments)), indent=1)
    if arguments.out:
        arguments.out.write_text(found + "\n")
    print(found)


if __name__ == "__main__":
    main()
