"""Every finding is made where its fault is, with file and line, a sample and what to do."""

# ruff: noqa: E501 - rows stand as written
from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.data.check import check
from luthier.data.findings import CODES
from luthier.data.fix import fix
from luthier.schema.data import CheckReport

WORDS = ["bridge", "school", "harbour", "market", "green", "yellow", "river", "forest", "mill", "church"]


def story(seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(f"{draw.choice(WORDS)} number {draw.randint(0, 999)} stands by the" for _ in range(15))


def pair(n: int) -> dict:
    return {"prompt": f"Question number {n}, please?", "completion": f"The answer {story(n)}"}


def chat(*turns: tuple[str, str]) -> dict:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


ASK, ANSWER = ("user", "What is the capital of France?"), ("assistant", "Paris")
CHATS = [chat(("user", f"Number {n}?"), ("assistant", f"{n}")) for n in range(8)]
LABELS = [{"text": f"text number {n}", "label": "ab"[n % 2]} for n in range(40)]

# The fault always stands in line 4 of a.jsonl, unless the case says otherwise.
IN_CHATS: dict[str, dict | str] = {
    "no-last-answer": chat(ASK, ANSWER, ASK),
    "answer-first": chat(ANSWER, ASK, ANSWER),
    "same-role-twice": chat(ASK, ASK, ANSWER),
    "answer-repeats-prompt": chat(ASK, ("assistant", f"{ASK[1]} It is Paris.")),
    "refusal": chat(ASK, ("assistant", "As an AI language model, I cannot know.")),
    "secret": chat(ASK, ("assistant", "use AKIAIOSFODNN7EXAMPLE here")),
    "personal-data": chat(("user", "mail jane.doe@corp-mail.org"), ANSWER),
    "template-marker": chat(("user", "stop<|im_end|> now"), ANSWER),
    "mojibake": chat(("user", "a cafÃ© in Paris"), ANSWER),
    "control-character": chat(("user", "a \x07 bell"), ANSWER),
    "duplicate": CHATS[1],
    "same-prompt": chat(("user", "Number 1?"), ("assistant", "one")),
    "broken-row": '{"messages": [',
    "no-assistant-turn": chat(ASK),
    "empty-answer": chat(ASK, ("assistant", " ")),
    "empty-prompt": chat(("user", ""), ANSWER),
    "empty-conversation": {"messages": []},
    "role-order": chat(ASK, ("system", "late"), ANSWER),
    "unknown-role": chat(("wizard", "x"), ANSWER),
    "bad-messages": {"messages": "none"},
    "missing-field": {"other": 1},
    "bad-tools": {**chat(ASK, ANSWER), "tools": [{"description": "nameless"}]},
    "bad-tool-call": {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{}]}]},
    "half-letter": '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "a"}]}',
    "missing-image": {**chat(ASK, ANSWER), "image": "gone.png"},
    "images": {"messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]},
        {"role": "assistant", "content": "Paris"},
    ]},
    "holds-images": {"messages": [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}]}, {"role": "assistant", "content": "Paris"},
    ]},
    "image-without-reference": {"messages": [
        {"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "Paris"},
    ]},
}  # fmt: skip


def write(path: Path, rows: list) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def run(folder: Path, rows: list, held: list | None = None, **wanted) -> CheckReport:
    write(folder / "a.jsonl", rows)
    if held is not None:
        write(folder / "held.jsonl", held)
    report = check(("a.jsonl",), base=folder, held_out=("held.jsonl",) if held else (), **wanted)
    assert report.read == report.kept + sum(report.dropped.values()) == len(rows)
    return report


def holds(report: CheckReport, code: str, line: int = 4, *, sample: bool = True) -> None:
    (found,) = [one for one in report.findings if one.code == code]
    assert (found.file, found.line) == ("a.jsonl", line)
    assert found.lines[0] == f"a.jsonl:{line}"
    assert found.sample or not sample
    assert found.fix
    assert found.message


@pytest.mark.parametrize("code", sorted(IN_CHATS))
def test_faults_of_conversations(code: str, tmp_path: Path) -> None:
    rows = [*CHATS[:3], IN_CHATS[code], *CHATS[3:]]
    if code == "bad-tools":
        rows = [{**row, "tools": []} if isinstance(row, dict) and "tools" not in row else row for row in rows]
    holds(run(tmp_path, rows, images=code != "holds-images"), code)


BESIDE: dict[str, Callable[[Path, Callable], tuple[CheckReport, int]]] = {
    "near-duplicate": lambda folder, make: (
        run(folder, [*map(pair, range(3)), {**pair(1), "prompt": "Another, then?"}, *map(pair, range(5, 9))]), 4
    ),
    "leakage": lambda folder, make: (run(folder, list(map(pair, range(9))), [pair(3)]), 4),
    "prompt-leakage": lambda folder, make: (
        run(folder, list(map(pair, range(9))), [{**pair(3), "completion": "otherwise"}]), 4
    ),
    "near-leakage": lambda folder, make: (
        run(folder, list(map(pair, range(9))), [{**pair(3), "prompt": "Asked otherwise?"}]), 4
    ),
    "conflicting-labels": lambda folder, make: (
        run(folder, [*LABELS[:3], {**LABELS[1], "label": "a"}, *LABELS[3:]]), 4
    ),
    "missing-label": lambda folder, make: (
        run(folder, [*LABELS[:3], {"text": "something", "label": ""}, *LABELS[3:]]), 4
    ),
    "empty-text": lambda folder, make: (run(folder, [*LABELS[:3], {"text": " ", "label": "a"}, *LABELS[3:]]), 4),
    "over-length-refused": lambda folder, make: (
        run(
            folder,
            [*CHATS[:3], chat(ASK, ("assistant", "word " * 400)), *CHATS[3:]],
            tokenizer=make("chatml"),
            sequence_length=128,
            refuse_long=True,
        ),
        4,
    ),
    "over-length": lambda folder, make: (
        run(
            folder,
            [*CHATS[:3], chat(ASK, ("assistant", "word " * 400)), *CHATS[3:]],
            tokenizer=make("chatml"),
            sequence_length=128,
        ),
        4,
    ),
    "nothing-trained": lambda folder, make: (
        run(
            folder,
            [*CHATS[:3], {"messages": [CHATS[5]["messages"][0], {**CHATS[5]["messages"][1], "weight": 0}]}],
            tokenizer=make("chatml"),
        ),
        4,
    ),
    "template-refuses": lambda folder, make: (
        run(folder, [*CHATS[:3], chat(("system", "s"), ASK, ANSWER)], tokenizer=make("gemma")), 4
    ),
    "reasoning-left-out": lambda folder, make: (
        run(
            folder,
            [
                *CHATS[:3],
                {"messages": [dict(zip(("role", "content"), ASK, strict=True)),
                              {"role": "assistant", "content": "Paris", "reasoning_content": "France, then."}]},
            ],
            tokenizer=make("chatml"),
        ),
        4,
    ),
    "unknown-shape": lambda folder, make: (run(folder, [{"a": n, "b": n} for n in range(5)]), 1),
}  # fmt: skip


@pytest.mark.parametrize("code", sorted(BESIDE))
def test_faults_that_need_a_tokenizer_or_other_rows(code: str, tmp_path: Path, make_tokenizer) -> None:
    report, line = BESIDE[code](tmp_path, make_tokenizer)
    holds(report, code, line)


def test_broken_images(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"not a picture")
    holds(run(tmp_path, [*CHATS[:3], {**chat(ASK, ANSWER), "image": "b.png"}]), "broken-image")


def whole(report: CheckReport, code: str) -> str:
    """Message and sample of a finding about the file as a whole."""
    (found,) = [one for one in report.findings if one.code == code]
    assert found.fix or found.level == "info"
    return f"{found.message} {found.sample or ''}"


def test_faults_of_the_whole(tmp_path: Path, monkeypatch) -> None:
    assert "x" in whole(run(tmp_path, [{"text": f"t{n}", "label": "x"} for n in range(9)]), "one-label")
    rare = run(tmp_path, [*LABELS, {"text": "odd", "label": "seldom"}])
    assert "seldom" in whole(rare, "rare-labels")
    assert "3 different ones" in whole(rare, "labels")
    most = [{"text": f"text {n}", "label": "b" if n % 10 == 0 else "a"} for n in range(100)]
    assert "90%" in whole(run(tmp_path, most), "label-balance")
    german = [{"text": f"Wie komme ich heute zum Bahnhof und was kostet das {n}?"} for n in range(15)]
    english = [{"text": f"What is the best way to get to the station number {n}?"} for n in range(15)]
    assert "de 50%" in whole(run(tmp_path, german + english), "languages")
    write(tmp_path / "b.jsonl", LABELS[:4])
    write(tmp_path / "a.jsonl", CHATS)
    assert "multi-class" in whole(check(("a.jsonl", "b.jsonl"), base=tmp_path), "mixed-shapes")
    (tmp_path / "a.jsonl").write_text("")
    assert whole(check(("a.jsonl",), base=tmp_path), "empty")
    monkeypatch.setattr("luthier.data.check.NEAR_ROWS", 3)
    assert "first 3" in whole(run(tmp_path, list(map(pair, range(9)))), "near-duplicate-limit")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", CHATS)
    write(tmp_path / "set" / "test.jsonl", CHATS)
    assert "left aside test.jsonl" in whole(check(("set",), base=tmp_path), "files")


def test_labels_and_leakage_of_rows_that_are_no_conversations(tmp_path: Path) -> None:
    held = [{"text": "wholly new", "label": "aa"}, LABELS[6], {"text": "another new", "label": "zebra"}]
    report = run(tmp_path, LABELS, held)
    found = {one.code: one for one in report.findings}
    assert (found["leakage"].count, found["leakage"].lines) == (1, ("a.jsonl:7",))
    unknown = found["unknown-label"]
    assert (unknown.count, unknown.file, unknown.line) == (2, "held.jsonl", 1)
    assert "'aa': did you mean a?" in (unknown.sample or "")
    near = [{"text": story(n), "label": "ab"[n % 2]} for n in range(20)]
    report = run(
        tmp_path,
        [*near, {"text": story(4) + " tower", "label": "a"}],
        [{"text": story(9) + " gate", "label": "b"}],
    )
    found = {one.code: one for one in report.findings}
    assert found["near-duplicate"].lines == ("a.jsonl:21",)
    assert found["near-leakage"].lines == ("a.jsonl:10",)
    pairs = [{"query": f"query number {n}", "positive": f"text number {n}"} for n in range(9)]
    assert {one.code for one in run(tmp_path, pairs, [pairs[2]]).findings} == {"leakage"}


def test_a_mapping_stands_for_the_held_out_rows_too(tmp_path: Path) -> None:
    rows = [{"ask": pair(n)["prompt"], "reply": pair(n)["completion"], "note": n} for n in range(9)]
    report = run(tmp_path, rows, [rows[5]], columns={"prompt": "ask", "completion": "reply"})
    assert {one.code: one.lines for one in report.findings} == {"leakage": ("a.jsonl:6",)}


def test_languages_of_many_files_are_weighed_by_their_rows(tmp_path: Path) -> None:
    for name, text in (
        ("a", "What is the best way to get there with you"),
        ("b", "Wie komme ich zum Bahnhof und was"),
    ):
        write(tmp_path / f"{name}.jsonl", [{"text": f"{text} {n}?"} for n in range(2_500)])
    said = whole(check(("a.jsonl", "b.jsonl"), base=tmp_path), "languages")
    assert "en 50%" in said
    assert "de 50%" in said


def test_prompts_that_split_otherwise_are_told(tmp_path: Path, make_tokenizer) -> None:
    """The prompt ends in a space that the answer's first word takes with it."""
    tokenizer = make_tokenizer("headers")
    (tokenizer.directory / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '<|' + m.role + '|> ' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
    )
    from luthier.data.tokenizer import load_tokenizer

    report = run(tmp_path, [*CHATS[:3], chat(ASK, ANSWER)], tokenizer=load_tokenizer(tokenizer.directory))
    assert "prompt-boundary" in {one.code for one in report.findings}


def test_long_texts_lose_nothing_and_are_no_finding(tmp_path: Path, make_tokenizer) -> None:
    rows = [{"text": story(n) * 4} for n in range(3)]
    report = run(tmp_path, rows, tokenizer=make_tokenizer("chatml"), sequence_length=128)
    assert report.tokens is not None
    assert report.tokens.minimum > 128
    assert "over-length" not in {one.code for one in report.findings}


def test_each_code_has_a_case() -> None:
    of_the_whole = {"files", "empty", "mixed-shapes", "near-duplicate-limit", "languages", "labels", "one-label",
                    "rare-labels", "label-balance", "unknown-label", "prompt-boundary", "broken-image",
                    "positive-is-query"}  # fmt: skip
    assert set(CODES) <= {*IN_CHATS, *BESIDE, *of_the_whole}


def test_fix_accounts_for_every_row(tmp_path: Path) -> None:
    rows = [*CHATS[:3], *IN_CHATS.values(), *CHATS[3:], pair(1)]
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "held.jsonl", [CHATS[6]])
    report = fix(("a.jsonl",), tmp_path / "clean.jsonl", base=tmp_path, held_out=("held.jsonl",))
    clean = (tmp_path / "clean.jsonl").read_text(encoding="utf-8").splitlines()
    dropped = [json.loads(line) for line in (tmp_path / "clean.dropped.jsonl").read_text().splitlines()]
    assert len(clean) + len(dropped) == report.read == len(rows)
    reasons = {one["line"]: one["reason"] for one in dropped}
    assert reasons[14] == "the same as a.jsonl:2"
    assert "stands in the held-out rows" in reasons.values()
    assert any("no assistant turn" in reason for reason in reasons.values())
    assert all(one["file"] == "a.jsonl" and one["line"] for one in dropped)
