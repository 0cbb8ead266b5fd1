"""Broken, odd and mutated files through the check: no traceback, and every row accounted for.

    python benchmarks/data/fuzz.py --inputs 20000 --seed 0 [--model FOLDER] [--out fuzz.json]

A quarter of the inputs are rows that hypothesis makes up, the others files of every shape with bytes
changed, cut, doubled and thrown in, made-up rows among right ones, and tables. Each goes through ``check``
as JSONL, JSON, CSV, TSV or text, plain or gzipped; a tenth also through ``--fix``, ``profile`` and
``split``. A LuthierError is an answer (its words are counted), anything else ends the run with the input
kept beside the results.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import platform
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from luthier.data.check import check
from luthier.data.fix import fix
from luthier.data.partition import Parting, split_files
from luthier.data.profile import profile
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import LuthierError

PIECES = [
    *(
        mark.encode()
        for mark in ('"', "{", "}", "[", "]", ",", ":", "\\", "-", '""', "''", "[[[[[[[[", '{"a":')
    ),
    *(b"\n", b"\r\n", b"\r", b"\t", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80"),
    *(b"null", b"true", b"NaN", b"1e999", b"9" * 400, b"\\ud800", b"\xe2\x80\xa8", b"\xf3\xb0\x80\x80"),
    *(b'"role"', b'"messages"', b'"content"', b'"tool_calls"', b'"from"', b'"label"', b'"score"'),
    b"<|im_end|>",
]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
WORDS = "with a few more words in it, ünïcödé 日本 👩‍👧."


def turns(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


SEEDS: list[list[dict[str, Any]]] = [
    [{"messages": turns(("user", f"What is {n}?"), ("assistant", f"It is {n}."))} for n in range(4)],
    [
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": f"Hello {n}"}]}
        for n in range(4)
    ],
    [{"instruction": f"Say {n}", "input": "", "output": f"{n}", "system": "Be brief"} for n in range(4)],
    [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(5)],
    [
        {"question": f"q{n}", "context": "c", "answers": {"text": [f"a{n}"], "answer_start": [0]}}
        for n in range(3)
    ],
    [{"text": f"A text of number {n} {WORDS}"} for n in range(5)],
    [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(8)],
    [{"text": f"t{n}", "labels": ["a"] if n % 2 else ["a", "b"]} for n in range(6)],
    [{"sentence1": f"s{n}", "sentence2": f"t{n}", "score": n / 5} for n in range(6)],
    [{"query": f"q{n}", "positive": f"p{n}", "negative": f"n{n}"} for n in range(4)],
    [{"prompt": f"p{n}", "chosen": f"c{n}", "rejected": f"r{n}"} for n in range(4)],
    [{"query-id": str(n), "corpus-id": str(n), "score": 1} for n in range(4)],
    [
        {
            "messages": [
                *turns(("user", "w?")),
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                *turns(("tool", "1"), ("assistant", f"one {n}")),
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        }
        for n in range(2)
    ],
]
NAMES = [
    "prompt",
    "completion",
    "messages",
    "conversations",
    "text",
    "label",
    "labels",
    "role",
    "content",
    "from",
    "value",
    "instruction",
    "output",
    "input",
    "tools",
    "tool_calls",
    "score",
    "query",
    "positive",
    "_id",
]
SUFFIXES = ["jsonl", "jsonl", "jsonl", "json", "csv", "tsv", "txt"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(NAMES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)


def made_up(draw: random.Random, depth: int = 0) -> Any:
    """Any JSON value, fond of the names that readers look for."""
    kind = draw.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return draw.choice([None, True, False, 0, -1, 1.5, 10**30, 1e308])
    if kind < 5:
        letters = draw.choice(
            ["ab c", "user assistant system tool", "日本語 ü", "\ud83d\x00\u2028\ufeff", "<|im_end|>\n", ""]
        )
        return "".join(draw.choice(letters) for _ in range(draw.randint(0, 12))) if letters else ""
    if kind == 5:
        return draw.choice(["user", "assistant", "system", "tool", "human", "gpt", "Hi there", "What is it?"])
    if kind == 6:
        return [made_up(draw, depth + 1) for _ in range(draw.randint(0, 4))]
    return {draw.choice(NAMES): made_up(draw, depth + 1) for _ in range(draw.randint(0, 4))}


def rows_of(draw: random.Random) -> bytes:
    """A file of made-up rows, now and then with one that is right."""
    rows = [
        made_up(draw) if draw.random() < 0.6 else draw.choice(draw.choice(SEEDS))
        for _ in range(draw.randint(0, 7))
    ]
    return "\n".join(json.dumps(row, ensure_ascii=draw.random() < 0.5) for row in rows).encode(
        "utf-8", "surrogatepass"
    )


def mutated(draw: random.Random) -> bytes:
    """A right file with a few wrong bytes."""
    raw = bytearray("\n".join(json.dumps(row, ensure_ascii=False) for row in draw.choice(SEEDS)).encode())
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(raw) + 1)
        match draw.randrange(6):
            case 0:
                raw[place:place] = draw.choice(PIECES)
            case 1:
                del raw[place : place + draw.randint(1, 40)]
            case 2 if place < len(raw):
                raw[place] = draw.randrange(256)
            case 3:
                other = draw.randrange(len(raw) + 1)
                raw[place:place] = raw[other : other + draw.randint(1, 60)]
            case 4 if draw.random() < 0.2:
                del raw[place:]
            case _:
                raw[place:place] = draw.choice(PIECES) * draw.randint(1, 3)
    return bytes(raw)


def tabular(draw: random.Random) -> bytes:
    """A table, with quotes and line ends where they hurt."""
    names = draw.sample(NAMES, draw.randint(1, 4))
    mark = draw.choice([",", "\t", ";", "|"])
    cells = ["a", "1", '"', '""', '"a\nb"', "x,y", "", "\u2028", "ü", '"unclosed', "'", "0.5", "\x00"]
    widths = [draw.choice([len(names), len(names), draw.randint(0, 5)]) for _ in range(6)]
    lines = [mark.join(draw.choice(cells) for _ in range(width)) for width in widths]
    return draw.choice(["\n", "\r\n", "\r"]).join([mark.join(names), *lines]).encode()


def one(raw: bytes, suffix: str, draw: random.Random, tokenizer: Any, counts: Counter[str]) -> None:
    """Put one input through everything. Raises what is no LuthierError, and AssertionError for a lost row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packed = draw.random() < 0.05
        file = folder / f"a.{suffix}{'.gz' if packed else ''}"
        file.write_bytes(gzip.compress(raw) if packed else raw)
        try:
            report = check((file.name,), base=folder, tokenizer=tokenizer if draw.random() < 0.3 else None)
        except LuthierError as error:
            counts[f"refused: {type(error).__name__}"] += 1
            return
        assert report.read == report.kept + sum(report.dropped.values())
        counts["checked"] += 1
        counts["rows read"] += report.read
        counts["rows kept"] += report.kept
        counts.update({f"dropped: {reason}": count for reason, count in report.dropped.items()})
        if draw.random() < 0.1:
            further(file, folder, report.read, counts)


def further(file: Path, folder: Path, read: int, counts: Counter[str]) -> None:
    """Fix, profile and split the same file."""
    try:
        fixed = fix((file.name,), folder / "clean.jsonl", base=folder)
        clean = len((folder / "clean.jsonl").read_bytes().splitlines())
        left = len((folder / "clean.dropped.jsonl").read_bytes().splitlines())
        assert fixed.read == read
        assert clean + left == read
        counts["fixed"] += 1
    except LuthierError:
        counts["fix refused"] += 1
    for what, call in (
        ("profiled", lambda: profile((file.name,), base=folder)),
        ("split", lambda: split_files((file.name,), folder / "out", Parting({"test": 0.3}), base=folder)),
    ):
        try:
            call()
            counts[what] += 1
        except LuthierError:
            counts[f"not {what}"] += 1


def by_hypothesis(count: int, tokenizer: Any, counts: Counter[str]) -> int:
    """Rows that hypothesis makes up and, where one fails, makes small. Returns how many inputs there were."""
    done = 0

    @seed(0)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(JSON, max_size=6), st.sampled_from(SUFFIXES), st.integers(0, 1 << 30))
    def run(rows: list[Any], suffix: str, number: int) -> None:
        nonlocal done
        done += 1
        text = "\n".join(json.dumps(row, ensure_ascii=number % 2 == 0) for row in rows)
        one(text.encode("utf-8", "surrogatepass"), suffix, random.Random(number), tokenizer, counts)

    run()
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    tokenizer = load_tokenizer(words.model) if words.model else None
    counts: Counter[str] = Counter()
    started = time.monotonic()
    made = by_hypothesis(words.inputs // 4, tokenizer, counts)
    for number in range(words.inputs - made):
        draw = random.Random(f"{words.seed}/{number}")
        raw = draw.choice([rows_of, mutated, mutated, tabular])(draw)
        suffix = draw.choice(SUFFIXES)
        try:
            one(raw, suffix, draw, tokenizer, counts)
        except Exception:
            traceback.print_exc()
            kept = Path(f"fuzz-{words.seed}-{number}.{suffix}")
            kept.write_bytes(raw)
            sys.exit(f"input {number} of seed {words.seed} failed; kept as {kept}")
    report = {
        "inputs": words.inputs,
        "by_hypothesis": made,
        "seed": words.seed,
        "failures": 0,
        "seconds": round(time.monotonic() - started, 1),
        "python": platform.python_version(),
        "versions": {one: importlib.metadata.version(one) for one in ("tokenizers", "hypothesis", "numpy")},
        "counts": dict(sorted(counts.items())),
    }
    print(json.dumps(report, indent=1))
    if words.out:
        words.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
