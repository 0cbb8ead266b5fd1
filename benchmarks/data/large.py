"""Memory and time of large files: `data check` and the loading of a recipe's rows for training.

    python benchmarks/data/large.py make 2000 big.jsonl        # megabytes, file
    python benchmarks/data/large.py short 5000000 many.jsonl   # rows of about 120 bytes
    python benchmarks/data/large.py load big.jsonl MODEL       # MODEL: a folder with a tokenizer
    python benchmarks/data/large.py check big.jsonl
    python benchmarks/data/large.py structure big.jsonl        # its structural part
    python benchmarks/data/large.py profile big.jsonl
    python benchmarks/data/large.py again small.jsonl.gz       # rows in place, as data.storage=stream does
    python benchmarks/data/large.py speed small.jsonl          # beside plain JSON parsing, one core
    python benchmarks/data/large.py parts small.jsonl MODEL    # where the time of loading goes, one core

`load` twice shows the first start and the second.

Each prints one JSON object, with what it was measured by. Memory is the resident size of the process and
its children together, sampled five times a second, files mapped into memory included.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
_WORDS = [
    "the",
    "of",
    "and",
    "to",
    "a",
    "in",
    "that",
    "it",
    "is",
    "was",
    "for",
    "on",
    "with",
    "as",
    "his",
    "they",
    "be",
    "at",
    "one",
    "have",
    "this",
    "from",
    "or",
    "had",
    "by",
    "hot",
    "but",
    "some",
    "what",
    "there",
    "we",
    "can",
    "out",
    "other",
    "were",
    "all",
    "your",
    "when",
    "up",
    "use",
    "word",
    "how",
    "said",
    "an",
    "each",
    "she",
    "which",
    "do",
    "their",
    "time",
    "if",
    "will",
    "way",
    "about",
    "many",
    "then",
    "them",
    "would",
    "write",
    "like",
    "so",
    "these",
    "her",
    "long",
    "make",
    "thing",
    "see",
    "him",
    "two",
    "has",
    "look",
    "more",
    "day",
    "could",
    "go",
    "come",
    "did",
    "my",
    "sound",
    "no",
    "most",
    "number",
    "who",
    "over",
    "know",
    "water",
    "than",
    "call",
    "first",
    "people",
]


def make(megabytes: float, path: Path) -> dict[str, float]:
    """Chats of random words, answers with a long tail, lines of about 4 kB."""
    draw = random.Random(0)
    pool = [" ".join(draw.choices(_WORDS, k=200)) for _ in range(500)]
    rows = size = 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            turns = []
            for _ in range(1 if draw.random() < 0.7 else 3):
                question = pool[draw.randrange(500)][: draw.randint(40, 900)]
                answer = "".join(draw.choices(pool, k=8))[: int(draw.lognormvariate(7, 0.8)) + 20]
                turns += [{"role": "user", "content": f"{question} {rows}"}]
                turns += [{"role": "assistant", "content": answer}]
            line = json.dumps({"id": rows, "messages": turns}) + "\n"
            file.write(line)
            rows, size = rows + 1, size + len(line)
    return {"rows": rows, "MB": round(size / 1e6, 1)}


def short(rows: int, path: Path) -> dict[str, float]:
    """Questions and answers of a few random words."""
    draw = random.Random(0)
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            question = " ".join(draw.choices(_WORDS, k=draw.randint(3, 9)))
            answer = " ".join(draw.choices(_WORDS, k=draw.randint(6, 16)))
            size += file.write(json.dumps({"prompt": f"{question} {number}", "completion": answer}) + "\n")
    return {"rows": rows, "MB": round(size / 1e6, 1)}


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Seconds and peak memory of a block."""
    found: dict[str, float] = {"peak MB": 0.0, "own peak MB": 0.0}
    over = threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not over.is_set():
            own = whole = me.memory_info().rss
            for child in me.children(recursive=True):
                try:
                    whole += child.memory_info().rss
                except psutil.Error:
                    continue
            found["peak MB"] = max(found["peak MB"], whole / 1e6)
            found["own peak MB"] = max(found["own peak MB"], own / 1e6)
            over.wait(0.2)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    started = time.perf_counter()
    yield found
    found["seconds"] = time.perf_counter() - started
    over.set()
    thread.join()


def load(path: Path, model: Path) -> dict[str, float]:
    """Rows of a recipe, ready for training, and 20,000 of them in random order."""
    from luthier.data.load import load_splits
    from luthier.data.tokenizer import load_tokenizer
    from luthier.schema.recipe import Recipe

    values = {"model": {"id": "a/b"}, "data": {"train": str(path), "over_length": "truncate"}}
    recipe = Recipe.model_validate(values)
    with watched() as found:
        data = load_splits(recipe, load_tokenizer(model), base=Path("/"), sequence_length=1024)
    train = data.splits.train
    order = random.Random(0).sample(range(len(train)), min(20_000, len(train)))
    with watched() as reading:
        tokens = sum(len(train[index].ids) for index in order)
    return {
        **found,
        "rows": sum(split.read for split in data.report.splits),
        "MB/s": path.stat().st_size / 1e6 / found["seconds"],
        "random rows/s": len(order) / reading["seconds"],
        "random tokens/s": tokens / reading["seconds"],
        "peak MB while reading": reading["peak MB"],
    }


def check(path: Path, *, deep: bool = True) -> dict[str, float]:
    """`luthier data check FILE`, or with deep false its structural part (`--structure`)."""
    from luthier.data.check import check as find

    with watched() as found:
        report = find((str(path),), base=Path("/"), deep=deep)
    assert report.read == report.kept + sum(report.dropped.values())
    return {**found, "rows": report.read, "MB/s": path.stat().st_size / 1e6 / found["seconds"]}


def profile(path: Path) -> dict[str, float]:
    """`luthier data profile FILE`."""
    from luthier.data.profile import profile as describe

    with watched() as found:
        report = describe((str(path),), base=Path("/"))
    assert report.read == report.rows + sum(report.dropped.values())
    return {**found, "rows": report.read, "MB/s": path.stat().st_size / 1e6 / found["seconds"]}


def again(path: Path) -> dict[str, float]:
    """200 rows in random order, each read in place: milliseconds of one core a row."""
    from luthier.data.again import Again
    from luthier.data.chunks import chunks, parse
    from luthier.data.large import _starts
    from luthier.data.sources import source_of

    def refuse(problem: Exception) -> None:
        raise problem

    source = source_of(path, str(path))
    places: list[tuple[int, int]] = []
    for chunk in chunks(source, refuse):
        rows, starts = list(parse(chunk, refuse)), _starts(chunk)
        places += [(int(starts[row.line - rows[0].line]), row.line) for row in rows]
    reader = Again([source])
    reader.row(0, *places[-1])
    started = time.process_time()
    for offset, line in random.Random(0).choices(places, k=200):
        assert reader.row(0, offset, line).line == line
    return {"rows": len(places), "ms a row": (time.process_time() - started) * 1e3 / 200}


def speed(path: Path) -> dict[str, float]:
    """Seconds of one core for each megabyte: the structural part beside plain JSON parsing.

    Processor time of one process, so that other work on the machine counts as little as it can.
    """
    from luthier.data import check as checking

    megabytes = path.stat().st_size / 1e6
    checking._SEVERAL = 1 << 60

    def plain() -> None:
        with path.open("rb") as file:
            for line in file:
                json.loads(line)

    def timed(work: Callable[[], object]) -> float:
        started = time.process_time()
        work()
        return megabytes / (time.process_time() - started)

    first = timed(plain)
    structure = timed(lambda: checking.check((str(path),), base=Path("/"), deep=False))
    whole = timed(lambda: checking.check((str(path),), base=Path("/")))
    return {
        "json MB/s": first,
        "structure MB/s": structure,
        "whole check MB/s": whole,
        "json again MB/s": timed(plain),
        "structure / json": structure / first,
    }


def parts(path: Path, model: Path) -> dict[str, float]:
    """Microseconds of one core that each part of loading takes for a row, over the first 2,000 rows."""
    from luthier.data.read import read_file
    from luthier.data.render import render_rows, render_text
    from luthier.data.shapes import detect, to_chat
    from luthier.data.sources import source_of
    from luthier.data.splits import prompt_key, rank
    from luthier.data.tokenizer import load_tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = load_tokenizer(model)
    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], list[T]]) -> list[T]:
        started = time.process_time()
        made = work()
        found[f"us {name}"] = (time.process_time() - started) * 1e6 / len(made)
        return made

    source = source_of(path, str(path))
    raw = timed("read", lambda: list(islice(read_file(source), 2_000)))
    shape = detect(raw[:50])
    chats = timed("shape", lambda: [to_chat(row, shape) for row in raw])
    timed("place in a split", lambda: [rank(prompt_key(chat), seed=0) for chat in chats])
    list(render_rows(chats[:50], tokenizer))
    texts = timed("template and mask", lambda: [render_text(chat, tokenizer).text for chat in chats])
    pieces = [texts[start : start + 256] for start in range(0, len(texts), 256)]
    encode = tokenizer._fast.encode_batch
    ids = timed("tokenizer alone", lambda: [len(one.ids) for piece in pieces for one in encode(piece)])
    timed("rendered whole", lambda: list(render_rows(chats, tokenizer)))
    return {**found, "rows": len(raw), "tokens a row": sum(ids) / len(ids)}


def measured_by() -> dict[str, object]:
    """Versions and the machine's load: what a figure means depends on them."""
    packages = {name: version(name) for name in ("numpy", "pyarrow", "tokenizers", "jinja2", "psutil")}
    load_average = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return {"python": platform.python_version(), **packages, "cores": os.cpu_count(), "load": load_average}


def main() -> None:
    what, path = sys.argv[1], Path(sys.argv[-1 if sys.argv[1] in ("make", "short") else 2]).absolute()
    before = measured_by()
    if what == "make":
        found = make(float(sys.argv[2]), path)
    elif what == "short":
        found = short(int(sys.argv[2]), path)
    elif what == "load":
        found = load(path, Path(sys.argv[3]))
    elif what == "parts":
        found = parts(path, Path(sys.argv[3]))
    elif what == "profile":
        found = profile(path)
    elif what == "again":
        found = again(path)
    elif what == "speed":
        found = speed(path)
    else:
        found = check(path, deep=what == "check")
    figures = {name: round(value, 2) for name, value in found.items()}
    print(json.dumps({"what": what, "MB": round(path.stat().st_size / 1e6, 1), **figures, "by": before}))


if __name__ == "__main__":
    main()
