"""A split keeps shares, keeps together what belongs together, and depends on nothing but seed and content."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.check import check
from luthier.data.partition import Parting, split_files
from luthier.errors import DataError, UsageError
from luthier.schema.data import FileSplitReport

WORDS = ["river", "mill", "bridge", "forest", "school", "market", "harbour", "church", "garden", "tower"]


def story(seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + str(draw.randint(0, 99)) for _ in range(80))


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(tmp_path: Path, rows: list[dict], **wanted) -> tuple[FileSplitReport, dict[str, list[dict]]]:
    write(tmp_path / "a.jsonl", rows)
    parting = Parting(**{"shares": {"test": 0.2, "validation": 0.1}, **wanted})
    report = split_files(("a.jsonl",), tmp_path / "out", parting, base=tmp_path, overwrite=True)
    parts = {part.name: read(tmp_path / "out" / f"{part.name}.jsonl") for part in report.parts}
    assert report.read == len(rows) == sum(map(len, parts.values()))
    assert [part.rows for part in report.parts] == [len(parts[part.name]) for part in report.parts]
    assert sorted(map(json.dumps, rows)) == sorted(json.dumps(row) for part in parts.values() for row in part)
    return report, parts


def test_shares_seed_and_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {n}?", "completion": story(n)} for n in range(200)]
    report, parts = run(tmp_path, rows)
    assert {name: len(part) for name, part in parts.items()} == {"train": 140, "test": 40, "validation": 20}
    assert report.together == {}
    turned = run(tmp_path, rows[::-1])[1]
    assert {name: sorted(map(json.dumps, part)) for name, part in turned.items()} == {
        name: sorted(map(json.dumps, part)) for name, part in parts.items()
    }
    other = run(tmp_path, rows, seed=18)[1]
    assert {row["prompt"] for row in other["test"]} != {row["prompt"] for row in parts["test"]}
    assert [row for row in rows if row in parts["test"]] == parts["test"], "rows stand in the file's order"


def test_labels_keep_their_shares_and_rare_ones_reach_the_test(tmp_path: Path) -> None:
    names = ["often"] * 300 + ["seldom"] * 80 + ["rare"] * 20
    rows = [{"text": f"text number {n}", "label": name} for n, name in enumerate(names)]
    report, _ = run(tmp_path, rows, shares={"test": 0.1})
    assert report.stratified_by == "label"
    assert report.parts[1].labels == {"often": 30, "seldom": 8, "rare": 2}
    many = [{"text": f"text number {n}", "label": f"label {n // 5}"} for n in range(500)]
    test = run(tmp_path, many, shares={"test": 0.1})[0].parts[1]
    assert test.rows == 50, "five rows a label owe half a row each, and two labels together one"
    assert max(test.labels.values()) == 1


def test_multi_label_rows_and_a_column_to_stratify_by(tmp_path: Path) -> None:
    rows = [
        {"text": f"text number {n}", "labels": ["a"] if n % 10 else ["a", "b"], "site": "xyz"[n % 3]}
        for n in range(300)
    ]
    report, _ = run(tmp_path, rows, shares={"test": 0.2})
    assert report.parts[1].labels == {"a": 60, "b": 6}
    by_site = run(tmp_path, rows, shares={"test": 0.2}, stratify="site")[0]
    assert by_site.parts[1].labels == {"x": 20, "y": 20, "z": 20}


def test_groups_stay_together(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": story(n), "meta": {"doc": f"doc {n % 40}"}} for n in range(200)]
    report, parts = run(tmp_path, rows, group="meta.doc")
    docs = [{row["meta"]["doc"] for row in part} for part in parts.values()]
    assert len(set.union(*docs)) == sum(map(len, docs)) == 40
    assert [part.rows for part in report.parts] == [140, 40, 20]
    assert report.together == {"one group": 160}


def test_equal_near_and_asked_alike_rows_stand_on_one_side(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": story(n)} for n in range(100)]
    copies = [dict(row) for row in rows[:30]]
    close = [{"prompt": f"other {n}", "completion": story(n) + " the end"} for n in range(30, 60)]
    asked = [{"prompt": f"q{n}", "completion": "otherwise"} for n in range(60, 90)]
    report, _ = run(tmp_path, rows + copies + close + asked)
    assert report.together == {"equal": 30, "equal prompt": 30, "nearly equal": 30}
    for held in ("test", "validation"):
        found = check(
            ("train.jsonl",), base=tmp_path / "out", held_out=(str(tmp_path / "out" / f"{held}.jsonl"),)
        )
        assert not {f.code for f in found.findings} & {"leakage", "prompt-leakage", "near-leakage"}
    apart = run(tmp_path, rows + close, near=False)[0]
    assert apart.together == {}


def test_queries_of_pairs_stand_on_one_side(tmp_path: Path) -> None:
    rows = [{"query": f"query {n % 50}", "positive": f"answer number {n}"} for n in range(150)]
    _, parts = run(tmp_path, rows)
    queries = [{row["query"] for row in part} for part in parts.values()]
    assert len(set.union(*queries)) == sum(map(len, queries)) == 50


def test_a_dry_run_writes_nothing_and_nothing_is_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": f"t{n}", "label": "xy"[n % 2]} for n in range(50)])
    dry = split_files(("a.jsonl",), None, Parting({"test": 0.2}), base=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    out = tmp_path / "out"
    real = split_files(("a.jsonl",), out, Parting({"test": 0.2}), base=tmp_path)
    assert [p.rows for p in dry.parts] == [p.rows for p in real.parts]
    assert FileSplitReport.model_validate_json((out / "split.json").read_text()) == real
    with pytest.raises(UsageError, match="there already"):
        split_files(("a.jsonl",), out, Parting({"test": 0.2}), base=tmp_path)
    write(tmp_path / "train.jsonl", [{"text": "t", "label": "x"}])
    with pytest.raises(UsageError, match="cannot replace its source"):
        split_files(("train.jsonl", "a.jsonl"), tmp_path, Parting({"test": 0.2}), base=tmp_path)


def test_what_cannot_be_split_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "same", "label": "x"}] * 9)
    for parting, error, words in (
        (Parting({"test": 0.2}), DataError, "too few"),
        (Parting({"test": 1.2}), UsageError, "share of test"),
        (Parting({"test": 0.6, "validation": 0.5}), UsageError, "nothing is left"),
        (Parting({"test": 0.2}, group="txt"), UsageError, "no column 'txt'"),
    ):
        with pytest.raises(error, match=words):
            split_files(("a.jsonl",), None, parting, base=tmp_path)
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{broken\n')
    with pytest.raises(DataError, match="broken JSON"):
        split_files(("b.jsonl",), None, Parting({"test": 0.2}), base=tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5), st.integers(0, 8)), min_size=2, max_size=60),
    st.sampled_from([0.1, 0.3]),
    st.integers(0, 3),
)
def test_no_row_is_lost_and_no_group_is_cut(tmp_path_factory, cells, share, seed) -> None:
    folder = tmp_path_factory.mktemp("split")
    rows = [{"text": f"text {a}", "label": f"l{b}", "person": c} for a, b, c in cells]
    write(folder / "a.jsonl", rows)
    try:
        parting = Parting({"test": share}, seed=seed, group="person")
        report = split_files(("a.jsonl",), folder / "out", parting, base=folder)
    except DataError:
        return
    train, test = (read(folder / "out" / f"{name}.jsonl") for name in ("train", "test"))
    assert len(train) + len(test) == report.read == len(rows)
    assert train
    assert test
    for column in ("text", "person"):
        assert not {row[column] for row in train} & {row[column] for row in test}
