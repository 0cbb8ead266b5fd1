"""Public data sets through check, profile and show; writes the table of docs/datasets.md.

    python benchmarks/data/survey.py DATA_FOLDER --model FOLDER [--only NAME ...] [--out survey.json]

DATA_FOLDER holds one folder a data set; MODEL a tokenizer with a chat template. Each data set is read as it
is, or with the mapping that stands here. What is found is for a person to judge: the table has all errors
and warnings with their counts.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from luthier.data.check import check
from luthier.data.profile import profile
from luthier.data.read import read_rows
from luthier.data.render import render_rows
from luthier.data.shapes import map_rows
from luthier.data.show import segments
from luthier.data.tokenizer import FileTokenizer, load_tokenizer
from luthier.errors import LuthierError

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
XQUAD = {"prompt": "{context}\n\nQuestion: {question}", "completion": "answers[0]"}


@dataclass(frozen=True)
class DataSet:
    """Files of a public data set, and how they are read."""

    folder: str
    title: str
    files: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)


CHOICES = "{question}\n\n{choices}"
DATA_SETS = (
    DataSet(
        "oasst1_en",
        "OASST1 conversations, English",
        ("conversations_train.jsonl",),
        ("conversations_validation.jsonl",),
    ),
    DataSet("oasst1_en", "OASST1 preferences, English", ("preferences_train.jsonl.gz",)),
    DataSet("self_instruct_seed", "Self-Instruct seed tasks", ("train.jsonl",)),
    DataSet("glaive_toolcall", "Glaive tool calls, English", ("train_en.jsonl.gz",)),
    DataSet("glaive_toolcall", "Glaive tool calls, Chinese", ("train_zh.jsonl.gz",)),
    DataSet("bfcl", "BFCL, simple (Python)", ("simple_python.jsonl",)),
    DataSet("sgd_tools", "SGD as tool calls", ("train.jsonl.gz",), ("validation.jsonl",)),
    DataSet("gsm8k", "GSM8K", ("train.jsonl.gz",)),
    DataSet("mbpp", "MBPP", ("train.jsonl",), ("test.jsonl",), {"prompt": "text", "completion": "code"}),
    DataSet(
        "mmlu",
        "MMLU, sample",
        ("test_sample.jsonl.gz",),
        ("dev.jsonl",),
        {"prompt": CHOICES, "completion": "choices[answer]"},
    ),
    DataSet(
        "arc",
        "ARC Challenge",
        ("challenge_test.jsonl",),
        (),
        {"prompt": CHOICES, "completion": "choices[answer]"},
    ),
    DataSet(
        "hellaswag_1k",
        "HellaSwag, sample",
        ("validation*",),
        (),
        {"prompt": "ctx", "completion": "endings[label]"},
    ),
    DataSet(
        "boolq",
        "BoolQ",
        ("validation.jsonl.gz",),
        (),
        {"prompt": "{passage}\n\nQuestion: {question}", "completion": "answer"},
    ),
    DataSet(
        "truthfulqa",
        "TruthfulQA",
        ("test.jsonl.gz",),
        (),
        {"prompt": "question", "completion": "best_answer"},
    ),
    DataSet("xquad", "XQuAD, English", ("test_en.jsonl.gz",), (), XQUAD),
    DataSet("xquad", "XQuAD, seven languages", ("test_*.jsonl.gz",), (), XQUAD),
    DataSet("xsid_intents", "xSID intents, 13 languages", ("validation_*.jsonl",)),
    DataSet(
        "jcommonsenseqa",
        "JCommonsenseQA",
        ("train.jsonl.gz",),
        ("validation.jsonl",),
        {"prompt": CHOICES, "completion": "choices[answer]"},
    ),
    DataSet("banking77", "Banking77", ("train.jsonl.gz",)),
    DataSet("clinc150", "CLINC150", ("train.jsonl.gz",), ("test.jsonl",)),
    DataSet("goemotions", "GoEmotions", ("train.jsonl.gz",), ("validation.jsonl.gz",)),
    DataSet("stsb_multi", "STS-B, German", ("train_de.jsonl",)),
    DataSet("stsb_multi", "STS-B, English", ("train_en.jsonl.gz",)),
    DataSet("snli", "SNLI", ("validation.jsonl.gz",)),
    DataSet("snli", "SNLI triplets", ("triplets_validation.jsonl.gz",)),
    DataSet("disfl_qa", "Disfl-QA", ("train.jsonl.gz",), ("test.jsonl.gz",)),
    DataSet("scifact", "SciFact corpus", ("corpus.jsonl.gz",)),
    DataSet("scifact", "SciFact queries", ("queries_train.jsonl",)),
    DataSet("nlvr_mini", "NLVR, sample", ("train.jsonl",)),
    DataSet("twemoji_captions", "Twemoji captions", ("train.jsonl",)),
    DataSet("skimage_photos", "scikit-image photos", ("train.jsonl",)),
    DataSet("tinyshakespeare", "Tiny Shakespeare", ("input.txt.gz",)),
    DataSet("wikitext2", "WikiText-2", ("validation.txt.gz",)),
    DataSet("state_union", "State of the Union", ("train.jsonl.gz",), ("validation.jsonl",)),
)


def survey(one: DataSet, root: Path, tokenizer: FileTokenizer) -> dict[str, Any]:
    """What check, profile and show say of one data set."""
    base = root / one.folder
    found: dict[str, Any] = {"data set": one.title, "files": list(one.files), "columns": one.columns}
    started = time.monotonic()
    wanted = {"columns": one.columns or None}
    for held in (one.held_out, ()):
        try:
            report = check(one.files, base=base, held_out=held, tokenizer=tokenizer, **wanted)
            break
        except LuthierError as error:
            found["held-out not compared"] = str(error)
    found |= {
        "format": report.format,
        "read": report.read,
        "kept": report.kept,
        "dropped": report.dropped,
        "findings": [
            {key: value for key, value in finding.model_dump().items() if value and key != "version"}
            for finding in report.findings
        ],
        "check_s": round(time.monotonic() - started, 2),
    }
    try:
        described = profile(one.files, base=base, tokenizer=tokenizer, **wanted)
        found["profile"] = described.model_dump(mode="json", exclude={"version"})
    except LuthierError as error:
        found["profile"] = {"refused": str(error), "hint": error.hint}
    found["show"] = shown(one, base, tokenizer)
    return found


def shown(one: DataSet, base: Path, tokenizer: FileTokenizer) -> list[Any]:
    """The first rows as pieces of text with whether they are trained."""
    try:
        _, chats = map_rows(read_rows(one.files, base=base), columns=one.columns or None)
        rows = render_rows(islice(chats, 2), tokenizer)
        return [[(text[:120], trained) for text, trained in segments(row, tokenizer)] for row in rows]
    except LuthierError as error:
        return [str(error).split("\n")[0]]


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table: rows, tokens, languages, errors and warnings."""
    lines = [
        "| data set | read as | rows | tokens a row (median, longest) | languages | errors and warnings |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for one in results:
        described = one["profile"]
        tokens = (
            ""
            if "refused" in described
            else f"{described['tokens']['median']:,}, {described['tokens']['maximum']:,}"
        )
        languages = ", ".join(
            f"{name} {share:.0%}"
            for name, share in list(described.get("languages", {}).items())[:4]
            if share >= 0.02
        )
        told = [
            f"{finding['code']} {finding.get('count', 1):,}"
            for finding in one["findings"]
            if finding["level"] != "info"
        ]
        mapped = " (mapped)" if one["columns"] else ""
        rows = f"{one['read']:,}" if one["read"] == one["kept"] else f"{one['kept']:,} of {one['read']:,}"
        cells = [one["data set"], one["format"] + mapped, rows, tokens, languages, ", ".join(told) or "none"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--docs", action="store_true", help="write the table into docs/datasets.md")
    words = parser.parse_args()
    tokenizer = load_tokenizer(words.model)
    results = []
    for one in DATA_SETS:
        if not words.only or one.folder in words.only:
            results.append(survey(one, words.data, tokenizer))
            print(table(results[-1:]).splitlines()[-1], flush=True)
    if words.out:
        text = json.dumps(results, indent=1, ensure_ascii=False, default=str)
        words.out.write_text(text + "\n", encoding="utf-8")
    if words.docs:
        head, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- table: data sets -->\n")
        tail = rest.partition("<!-- end -->")[2]
        PAGE.write_text(
            f"{head}<!-- table: data sets -->\n\n{table(results)}\n<!-- end -->{tail}", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
