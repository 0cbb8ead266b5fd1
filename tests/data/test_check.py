"""Planted faults are found where they are, clean data are left alone, and every row is accounted for."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.check import check
from luthier.data.fix import fix
from luthier.data.languages import guess_language
from luthier.data.near import NearIndex
from luthier.data.patterns import markers, mojibake, personal_data, secrets
from luthier.data.profile import estimate_tokens, profile
from luthier.data.read import RawRow
from luthier.data.render import render_row
from luthier.data.show import segments, show_tokens
from luthier.errors import DataError, FileProblem, LuthierError, Unsupported, UsageError
from luthier.runs.inspect import rendered_rows
from luthier.schema.data import CheckReport
from luthier.schema.protocols import ChatRow

SENTENCE = "The {} of the {} town was painted {} by the people who lived near the {} for many years."
WORDS = ["bridge", "school", "harbour", "market", "green", "yellow", "river", "forest", "mill", "church"]


def clean(count: int, seed: int = 0) -> list[dict]:
    draw = random.Random(seed)
    return [
        {
            "prompt": f"Question {n}: what about {draw.choice(WORDS)} {draw.randint(0, 10**6)}?",
            "completion": f"Answer {n} {draw.random()}",
        }
        for n in range(count)
    ]


@pytest.fixture
def checked(tmp_path: Path):
    def run(rows: list[dict] | str, held: list[dict] | None = None, **kwargs) -> CheckReport:
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
        held_out: tuple[str, ...] = ()
        if held is not None:
            (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
            held_out = ("held.jsonl",)
        report = check(("a.jsonl",), base=tmp_path, held_out=held_out, **kwargs)
        assert report.read == report.kept + sum(report.dropped.values())
        return report

    return run


def found(report: CheckReport) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {finding.code: (finding.count, finding.lines) for finding in report.findings}


def test_clean_rows_have_no_findings(checked) -> None:
    report = checked(clean(200))
    assert (report.read, report.kept, report.dropped) == (200, 200, {})
    assert [f for f in report.findings if f.level != "info"] == []
    assert report.format == "prompt-completion"


def turn(*pairs: tuple[str, str]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


ASK, ANSWER = ("user", "What is the capital of France?"), ("assistant", "Paris")


@pytest.mark.parametrize(
    ("code", "row"),
    [
        ("no-last-answer", turn(ASK, ANSWER, ASK)),
        ("answer-first", turn(ANSWER, ASK, ANSWER)),
        ("same-role-twice", turn(ASK, ASK, ANSWER)),
        ("answer-repeats-prompt", turn(ASK, ("assistant", f"{ASK[1]} It is Paris."))),
        ("refusal", turn(ASK, ("assistant", "As an AI language model, I cannot know."))),
        ("secret", turn(ASK, ("assistant", "use AKIAIOSFODNN7EXAMPLE here"))),
        ("personal-data", turn(("user", "mail jane.doe@corp-mail.org"), ANSWER)),
        ("template-marker", turn(("user", "stop<|im_end|> now"), ANSWER)),
        ("mojibake", turn(("user", "a cafÃ© in Paris"), ANSWER)),
        ("mojibake", turn(("user", "a caf\ufffd in Paris"), ANSWER)),
        ("control-character", turn(("user", "a \x07 bell"), ANSWER)),
        ("no-assistant-turn", turn(ASK)),
        ("role-order", turn(ASK, ("system", "late"), ANSWER)),
        ("unknown-role", turn(("wizard", "x"), ANSWER)),
        ("empty-answer", turn(ASK, ("assistant", " "))),
        ("bad-messages", {"messages": "none"}),
        ("missing-field", {"other": 1}),
    ],
)
def test_each_fault_is_found_at_its_line(code: str, row: dict, checked) -> None:
    good = [turn(("user", f"Number {n}?"), ("assistant", f"{n}")) for n in range(9)]
    report = checked([*good[:4], row, *good[4:]])
    assert found(report)[code] == (1, ("a.jsonl:5",))
    finding = next(f for f in report.findings if f.code == code)
    assert (finding.file, finding.line) == ("a.jsonl", 5)
    assert finding.fix
    others = set(found(report)) - {code, "labels"}
    assert not others


def test_duplicates_and_equal_prompts(checked) -> None:
    rows = clean(20)
    report = checked([*rows, rows[3], rows[3], {**rows[5], "completion": "another"}])
    assert found(report)["duplicate"] == (2, ("a.jsonl:21", "a.jsonl:22"))
    assert found(report)["same-prompt"] == (1, ("a.jsonl:23",))


def long_text(seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(SENTENCE.format(*draw.choices(WORDS, k=4)) for _ in range(12))


def test_near_duplicates(checked) -> None:
    rows = [{"prompt": f"Tell me story {n}", "completion": long_text(n)} for n in range(30)]
    changed = {**rows[4], "completion": rows[4]["completion"].replace("many years", "three years", 1)}
    report = checked([*rows, changed])
    assert found(report)["near-duplicate"] == (1, ("a.jsonl:31",))


def test_leakage_exact_by_prompt_and_near(checked) -> None:
    rows = clean(20)
    story = {"prompt": "Tell me a story", "completion": long_text(3)}
    close = {"prompt": "Tell me a story", "completion": long_text(3).replace("people", "men", 1)}
    close["prompt"] += " now"
    report = checked([*rows, story], held=[rows[2], {**rows[7], "completion": "other"}, close])
    codes = found(report)
    assert codes["leakage"] == (1, ("a.jsonl:3",))
    assert codes["prompt-leakage"] == (1, ("a.jsonl:8",))
    assert codes["near-leakage"] == (1, ("a.jsonl:21",))
    assert report.errors


def test_only_rows_worth_keeping_are_handed_on(checked) -> None:
    rows, seen = clean(10), []
    report = checked(
        [*rows, rows[0], {"prompt": "x"}], held=[rows[1]], on_row=lambda row, why: seen.append((row, why))
    )
    assert [row.value for row, why in seen if why is None] == [rows[0], *rows[2:]]
    assert [(row.line, why) for row, why in seen if why] == [
        (2, "stands in the held-out rows"), (11, "the same as a.jsonl:1"),
    ]  # fmt: skip
    assert (report.read, report.kept) == (12, 11)


def test_fix_writes_a_file_without_findings(checked, tmp_path: Path) -> None:
    rows = clean(10)
    checked([*rows, rows[0], {"prompt": "x"}])
    report = fix(("a.jsonl",), tmp_path / "clean.jsonl", base=tmp_path)
    assert report.dropped == {"missing-field": 1}
    assert [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()] == rows
    assert [
        json.loads(line)["line"] for line in (tmp_path / "clean.dropped.jsonl").read_text().splitlines()
    ] == [11, 12]
    again = check(("clean.jsonl",), base=tmp_path)
    assert (again.read, again.kept, [f for f in again.findings if f.level != "info"]) == (10, 10, [])
    with pytest.raises(UsageError, match="cannot replace its source"):
        fix(("a.jsonl",), tmp_path / "a.jsonl", base=tmp_path)
    labels = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "a", "label": "x"}]
    checked(labels)
    fix(("a.jsonl",), tmp_path / "clean.jsonl", base=tmp_path)
    assert [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()] == labels[:2]


def test_broken_lines_are_counted_and_the_rest_is_checked(checked) -> None:
    report = checked(
        '{"prompt": "a?", "completion": "b"}\n{broken\n[1]\n{"prompt": "c?", "completion": "d"}\n'
    )
    assert (report.read, report.kept, report.dropped) == (4, 2, {"broken-row": 2})
    assert found(report)["broken-row"] == (2, ("a.jsonl:2", "a.jsonl:3"))
    assert checked("").findings[0].code == "empty"


def test_unknown_shapes_are_a_finding_with_a_mapping(checked) -> None:
    report = checked([{"question": "q", "choices": ["a", "b"], "answer": 1}] * 3)
    (finding,) = report.findings
    assert (finding.code, report.kept, report.dropped) == ("unknown-shape", 0, {"unknown-shape": 3})
    assert "choices[answer]" in (finding.fix or "")


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("multi-class", {"text": "{}", "label": "a"}),
        ("multi-label", {"text": "{}", "labels": ["a", "b"]}),
        ("pair", {"anchor": "{}", "positive": "p"}),
        ("triplet", {"anchor": "{}", "positive": "p", "negative": "n"}),
        ("scored-pair", {"sentence1": "{}", "sentence2": "p", "score": 1.5}),
        ("labelled-pair", {"premise": "{}", "hypothesis": "p", "label": 0}),
        ("preference", {"prompt": "{}", "chosen": "c", "rejected": "r"}),
        ("corpus", {"_id": "1", "title": "t", "text": "{}"}),
        ("qrels", {"query-id": "{}", "corpus-id": "1", "score": 1}),
    ],
)
def test_rows_of_other_tasks_are_told_and_checked(kind: str, row: dict, checked) -> None:
    rows = [{key: v.format(n) if isinstance(v, str) else v for key, v in row.items()} for n in range(30)]
    empty = {**rows[0], next(key for key, v in row.items() if v == "{}"): ""}
    report = checked([*rows, rows[0], empty])
    assert report.format == kind
    assert report.dropped == {"empty-text": 1}
    assert found(report)["duplicate"] == (1, ("a.jsonl:31",))


@pytest.mark.parametrize("purpose", [None, "similarity"])
def test_a_query_that_is_its_own_positive_is_found_at_its_line(purpose: str | None, checked) -> None:
    rows = [{"anchor": f"cat {n}", "positive": f"dog {n}"} for n in range(30)]
    rows[7]["positive"] = "cat 7 "
    report = checked(rows, **({} if purpose is None else {"purpose": purpose}))
    assert found(report)["positive-is-query"] == (1, ("a.jsonl:8",))
    assert next(one for one in report.findings if one.code == "positive-is-query").level == "warning"


def test_labels_their_balance_and_conflicts(checked) -> None:
    rows = [
        {"text": f"text {n}", "label": "big" if n < 90 else "small" if n < 97 else "tiny"} for n in range(100)
    ]
    report = checked([*rows, {"text": "text 3", "label": "small"}])
    codes = found(report)
    assert codes["conflicting-labels"] == (1, ("a.jsonl:101",))
    assert codes["rare-labels"][0] == 3
    assert "label-balance" in codes
    assert found(checked([{"text": f"t{n}", "label": "x"} for n in range(9)]))["one-label"]


def test_files_of_different_shapes_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "a", "label": "b"}\n')
    report = check(("a.jsonl", "b.jsonl"), base=tmp_path)
    assert report.kept == 2
    assert "mixed-shapes" in found(report)
    with pytest.raises(FileProblem):
        check(("c.jsonl",), base=tmp_path)


def test_with_a_tokenizer_lengths_and_refusals_are_told(checked, make_tokenizer) -> None:
    rows = [*clean(20), {"prompt": "word " * 100, "completion": "word " * 100}]
    report = checked(rows, tokenizer=make_tokenizer("chatml"), sequence_length=128)
    assert found(report)["over-length"] == (1, ("a.jsonl:21",))
    assert report.tokens is not None
    assert report.tokens.count == 21
    assert sum(rows for _, rows in report.histogram) == 21
    system = [{"prompt": "a?", "completion": "b", "system": "s"}]
    assert found(checked(system, tokenizer=make_tokenizer("gemma")))["template-refuses"][0] == 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("call +49 30 901820 today", "telephone number"),
        ("card 4111 1111 1111 1111", "card number"),
        ("IBAN DE89 3704 0044 0532 0130 00", "bank account"),
        ("ssn 123-45-6789.", "social security number"),
        ("john@smith.org", "e-mail address"),
    ],
)
def test_personal_data_are_recognised(text: str, kind: str) -> None:
    assert [name for name, _ in personal_data(text)] == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",
        "2 + 2 = 4, +1",
        "DE00 3704 0044 0532 0130 00",
        "me@example.com",
        "000-12-3456",
        "1234567890123",
        "v1.2.3-45-6789",
    ],
)
def test_what_only_looks_like_them_is_not(text: str) -> None:
    assert list(personal_data(text)) == []


def test_secrets_are_shortened_and_ordinary_words_are_none() -> None:
    ((kind, piece),) = secrets("token ghp_" + "a1B2" * 9)
    assert kind == "github"
    assert len(piece) < 12
    assert list(secrets("the sk-learn ghost hf_hub xoxo eyJealousy")) == []


def test_markers_and_mojibake_have_no_false_friends() -> None:
    assert list(markers("a < b | c > d, [inst] and #### 72, x</sup>")) == []
    assert list(markers("[INST] hi [/INST]")) == ["[INST]", "[/INST]"]
    for text in ("Âge d'or, São Paulo, Ünïcödé, Ça va?", "naïve façade – “quoted”", "ÀÉÎÕÜ", "10 € – ok"):
        assert mojibake(text) is None
    assert mojibake("donâ€™t") is not None


def test_languages_are_guessed() -> None:
    texts = {
        "en": "What is the best way to travel from here to the station?",
        "de": "Wie komme ich am besten von hier zum Bahnhof und was kostet das?",
        "fr": "Quelle est la meilleure façon de se rendre à la gare depuis ici ?",
        "es": "¿Cuál es la mejor manera de llegar a la estación desde aquí?",
        "zh": "从这里到车站最好的方法是什么？",
        "ja": "ここから駅まで一番いい行き方は何ですか？",
        "ko": "여기서 역까지 가는 가장 좋은 방법은 무엇입니까?",
        "cyrillic": "Как лучше всего добраться отсюда до вокзала?",
        "unknown": "1234 !!",
    }
    assert {guess_language(text) for text in texts.values()} == set(texts)
    assert all(guess_language(text) == language for language, text in texts.items())


def test_minhash_estimates_similarity() -> None:
    index = NearIndex()
    assert index.add(long_text(1), 1) is None
    assert index.add(long_text(2), 2) is None
    assert index.find(long_text(1) + " The end.") == 1
    assert index.find("too short to tell") is None


def test_profile_counts_with_and_without_a_tokenizer(tmp_path: Path, make_tokenizer) -> None:
    rows = [
        {"prompt": f"Give {n} as JSON, please, for the order of the day.", "completion": json.dumps({"n": n})}
        for n in range(50)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    guess = profile(("a.jsonl",), base=tmp_path)
    assert (guess.rows, guess.format, guess.structure["json-answers"]) == (50, "prompt-completion", 1.0)
    assert "3.5 characters a token" in guess.basis
    assert max(guess.languages, key=lambda name: guess.languages[name]) == "en"
    tokenizer = make_tokenizer("chatml")
    exact = profile(("a.jsonl",), base=tmp_path, tokenizer=tokenizer)
    assert "own tokenizer" in exact.basis
    chat = ChatRow(
        [
            {"role": "user", "content": rows[7]["prompt"]},
            {"role": "assistant", "content": rows[7]["completion"]},
        ],
        "f",
        1,
        "i",
    )
    assert exact.tokens.minimum <= len(render_row(chat, tokenizer).ids) <= exact.tokens.maximum
    (tmp_path / "b.jsonl").write_text('{"prompt": "", "completion": "x"}\n')
    with pytest.raises(DataError, match="no row can be used"):
        profile(("b.jsonl",), base=tmp_path)


def test_a_profile_accounts_for_every_row(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(40)]
    lines = [json.dumps(row) for row in rows]
    lines[3], lines[20], lines[39] = "no", '{"prompt": "", "completion": "x"}', "[1]"
    lines[25] = '{"prompt": "What?"}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    found = profile(("a.jsonl",), base=tmp_path)
    assert (found.read, found.rows) == (40, 36)
    assert found.dropped == {"broken-row": 2, "empty-prompt": 1, "missing-field": 1}
    labelled = [{"text": f"text number {n}" if n else " ", "label": "ab"[n % 2]} for n in range(30)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled) + "no\n")
    found = profile(("b.jsonl",), base=tmp_path)
    assert (found.read, found.rows) == (31, 29)
    assert found.dropped == {"broken-row": 1, "empty-text": 1}
    assert sum(found.labels.values()) == 29


def test_a_profile_keeps_a_sample_and_not_the_rows(monkeypatch) -> None:
    from luthier.data import profile as profiling

    alive: set[int] = set()
    most = 0

    class Messages(list[dict[str, str]]):
        def __init__(self, number: int) -> None:
            super().__init__([{"role": "user", "content": f"What is {number}?"}])
            self.append({"role": "assistant", "content": f"It is {number}."})
            self.number = number
            alive.add(number)

        def __del__(self) -> None:
            alive.discard(self.number)

    def rows() -> Iterator[ChatRow]:
        nonlocal most
        for number in range(600):
            yield ChatRow(Messages(number), "f", number + 1, str(number))
            most = max(most, len(alive))

    monkeypatch.setattr(profiling, "_SAMPLE", 30)
    found = profiling.profile_chats(rows(), None, "messages")
    assert (found.rows, found.read, found.sampled) == (600, 600, 30)
    assert (found.turns.total, found.tokens.count) == (1_200, 600)
    assert most < 40
    assert profiling.profile_chats(rows(), None, "messages") == found


def test_quantiles_of_counted_values() -> None:
    from luthier.data.stats import lengths, lengths_of

    for values in ([], [4], [3, 1, 1, 2, 9], list(range(200)), [5] * 99 + [7]):
        assert lengths_of(Counter(values)) == lengths(values)


def test_profile_of_labels() -> None:
    from luthier.data.profile import profile_rows

    rows = [RawRow({"prompt": f"p{n}?", "completion": "yes" if n % 3 else "no"}, "f", n) for n in range(60)]
    assert profile_rows(rows).labels == {"yes": 40, "no": 20}
    assert estimate_tokens("word " * 70) == 100
    assert estimate_tokens("日本語" * 13) == 30


def test_profile_of_rows_that_are_no_conversations(tmp_path: Path, make_tokenizer) -> None:
    rows = [
        {"text": f"The weather in town number {n} is fine and warm", "label": "ab"[n % 3 == 0]}
        for n in range(60)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for tokenizer in (None, make_tokenizer("chatml")):
        found = profile(("a.jsonl",), base=tmp_path, tokenizer=tokenizer)
        assert (found.rows, found.format, found.labels) == (60, "multi-class", {"a": 40, "b": 20})
        assert found.tokens.minimum > 5
        assert found.answer_tokens.maximum == 0
        assert found.languages == {"en": 1.0}
    (tmp_path / "b.jsonl").write_text('{"query": "what is it", "positive": "a thing"}\n')
    assert profile(("b.jsonl",), base=tmp_path).format == "pair"
    (tmp_path / "c.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="cannot tell what the rows are"):
        profile(("c.jsonl",), base=tmp_path)


def test_shown_tokens_join_to_the_row(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    chat = ChatRow(
        [{"role": "user", "content": "日本 👩‍👩‍👧 hi"}, {"role": "assistant", "content": "naïve  👍🏽 ok"}],
        "f",
        1,
        "i",
    )
    row = render_row(chat, tokenizer)
    pieces = show_tokens(row, tokenizer)
    assert [piece[1] for piece in pieces] == row.ids.tolist()
    assert [piece[2] for piece in pieces] == row.trained.tolist()
    assert "".join(piece[0] for piece in pieces) == tokenizer.decode(row.ids.tolist(), skip_special=False)
    assert [text for text, trained in segments(row, tokenizer) if trained] == ["naïve  👍🏽 ok<|im_end|>"]


LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                '{"prompt": "a?", "completion": "b"}',
                '{"messages": []}',
                '{"text": "x"}',
                "{",
                "[]",
                '"',
                "\ufeff",
                "\x00",
            ]
        ),
        st.text(max_size=20),
        st.dictionaries(
            st.sampled_from(["prompt", "completion", "messages", "text", "label"]),
            st.text(max_size=5) | st.none() | st.integers(),
        ).map(json.dumps),
    ),
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(
    LINES, st.sampled_from(["jsonl", "json", "csv", "tsv", "txt"]), st.binary(max_size=6), st.integers(0, 99)
)
def test_mutated_files_never_bring_a_traceback(tmp_path_factory, lines, suffix, noise, place) -> None:
    raw = "\n".join(lines).encode("utf-8", "surrogatepass")
    cut = place % (len(raw) + 1)
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / f"a.{suffix}").write_bytes(raw[:cut] + noise + raw[cut:])
    try:
        report = check((f"a.{suffix}",), base=folder)
    except LuthierError:
        return
    assert report.read == report.kept + sum(report.dropped.values())


def test_prompts_and_answers_for_a_model_without_a_template(tmp_path: Path, make_tokenizer) -> None:
    tokenizer = make_tokenizer(None)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"prompt": "What is {n}? ", "completion": "It is {n}."}}\n' for n in range(4)))
    found = check((str(path),), base=tmp_path, tokenizer=tokenizer, purpose="text-generation")
    assert found.tokens is not None
    assert (found.read, found.kept, found.tokens.count, found.errors) == (4, 4, 4, ())
    with pytest.raises(Unsupported, match="no chat template"):
        check((str(path),), base=tmp_path, tokenizer=tokenizer)
    folder = str(tokenizer.directory)
    (tokenizer.directory / "config.json").write_text('{"model_type": "llama"}')
    (tokenizer.directory / "model.safetensors").touch()
    values = {"model": {"id": folder}, "task": "text-generation", "data": {"train": str(path)}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    (row,) = rendered_rows(tmp_path / "recipe.yaml", (), model=None, count=1, say=print)
    assert "".join(text for text, _, _ in row.pieces).startswith("What is 0? It is 0.")
    assert "".join(text for text, _, trained in row.pieces if trained).startswith("It is 0.")
    assert row.row.file == str(path)
