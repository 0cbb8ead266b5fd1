from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.evaluation.compare import compare
from luthier.evaluation.generation import evaluate
from luthier.runs.report.charts import Series, chart, nice_ticks, smooth, thin
from luthier.runs.report.context import Command, Point, ReportContext, read_points
from luthier.runs.report.render import (
    markdown_cell,
    markdown_fence,
    render_html,
    render_markdown,
    write_report,
)
from luthier.runs.report.words import clean, doubt, duration, figure, size
from luthier.schema.base import Range
from luthier.schema.data import DataReport, Finding, Lengths, SplitReport
from luthier.schema.estimate import Estimate, Phase
from luthier.schema.hardware import Hardware, Processor
from luthier.schema.licence import Licence
from luthier.schema.protocols import ChatRow, Generated, Message, Progress
from luthier.schema.recipe import DataChoice, Lora, ModelChoice, Recipe, TrainingChoice
from luthier.schema.results import Artifact, EvalResult, Metric, ParityCheck, TrainResult
from luthier.schema.run import Failure, Status

HOSTILE = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>\"'{{ 7*7 }}"


class Table:
    """Answers by a table."""

    def __init__(self, label: str, answers: dict[str, str]) -> None:
        self.label, self.weights_digest, self.answers = label, f"digest-of-{label}", answers

    def generate(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Sequence[dict[str, Any]] | None] | None = None,
        max_new_tokens: int,
        progress: Progress | None = None,
    ) -> list[Generated]:
        return [Generated(self.answers[chat[-1]["content"]], (), True) for chat in chats]


def judged(split: str, n: int, base_right: float, tuned_right: float) -> tuple[EvalResult, EvalResult]:
    """Two models on orders written as JSON; each field is right with a given chance."""
    rng = random.Random(f"{split}{n}")
    rows, base, tuned = [], {}, {}
    names = ["Okafor", "Lindqvist", "Tanaka", "Moreau", "Haddad", "Novak", "Silva", "Byrne"]
    for i in range(n):
        order = {
            "customer": rng.choice(names),
            "item": rng.choice(["oak shelf", "desk lamp", "wool rug", "brass hook"]),
            "quantity": rng.randint(1, 12),
            "express": rng.random() < 0.3,
        }
        prompt = (
            f"{order['customer']} rang at {rng.randint(8, 18)}:{rng.randint(10, 59)}: please send "
            f"{order['quantity']} x {order['item']}{', in a hurry' if order['express'] else ''}. (#{i})"
        )
        right = json.dumps(order)
        wrong = {**order, "quantity": 0, "express": "no"}
        chatty = (
            f"Sure, I can help with that order from {order['customer']}!\n\n```json\n{json.dumps(wrong)}\n```"
        )
        base[prompt] = right if rng.random() < base_right else rng.choice([chatty, "I will pass it on."])
        tuned[prompt] = right if rng.random() < tuned_right else json.dumps(wrong)
        rows.append(
            ChatRow(
                messages=[{"role": "user", "content": prompt}, {"role": "assistant", "content": right}],
                file=f"{split}.jsonl",
                line=i + 1,
                id=f"{rng.getrandbits(64):016x}",
            )
        )
    return (
        evaluate(Table("base", base), rows, split=split, max_new_tokens=64),
        evaluate(Table("tuned", tuned), rows, split=split, max_new_tokens=64),
    )


def curve_points(steps: int) -> tuple[Point, ...]:
    rng = random.Random(1)
    return tuple(
        Point(
            step=i,
            loss=0.25 + 2.6 * math.exp(-i / 40) + rng.gauss(0, 0.05),
            learning_rate=2e-4 * min(1, i / 10) * (0.5 + 0.5 * math.cos(math.pi * i / steps)),
            grad_norm=abs(rng.gauss(0.8, 0.25)),
            tokens_per_second=rng.gauss(240, 9),
            memory=1.9e9 + 2e8 * math.sin(i / 20),
            validation_loss=0.3 + 2.5 * math.exp(-i / 45) if i % 20 == 0 else None,
        )
        for i in range(1, steps + 1)
    )


def gb(low: float, expected: float, high: float) -> Range:
    return Range(low=low * 1e9, expected=expected * 1e9, high=high * 1e9)


def full_context() -> ReportContext:
    test, reworded = judged("test", 96, 0.05, 0.93), judged("reworded", 88, 0.03, 0.8)
    parity = ParityCheck(
        prompts=8,
        equal_token_ids=8,
        compared_tokens=214,
        equal_tokens=214,
        near_ties=1,
        mean_kl=0.00042,
        stops=True,
        passed=True,
    )
    failed = parity.model_copy(
        update={"equal_tokens": 150, "passed": False, "problems": ("150 of 214 tokens",)}
    )
    split = SplitReport(name="train", files=("orders.jsonl",), read=1000, kept=992, digest="ab", duplicates=3)
    lengths = Lengths(count=992, total=90_000, minimum=40, median=88, p90=130, p95=141, p99=160, maximum=182)
    return ReportContext(
        run_id="orders-20261122-4f1c",
        created=1_795_305_600.0,
        recipe=Recipe(
            name="orders",
            model=ModelChoice(id="HuggingFaceTB/SmolLM2-135M-Instruct", dtype="float32"),
            method=Lora(rank=16, alpha=32),
            data=DataChoice(train=("orders.jsonl",)),
            training=TrainingChoice(epochs=3, learning_rate=2e-4, batch_size=8, sequence_length=192),
            sources={
                "training.batch_size": "fits 2.1 of 4.0 GB",
                "training.sequence_length": "longest row has 182 tokens",
                "model.dtype": "this processor emulates bf16",
            },
        ),
        status=Status(
            state="done",
            seconds={"baseline": 61.0, "train": 341.0, "prove": 44.0, "ship": 73.0},
            peak_memory={
                "baseline": 1_200_000_000,
                "train": 2_210_000_000,
                "prove": 1_300_000_000,
                "ship": 2_900_000_000,
            },
        ),
        hardware=Hardware(
            processor=Processor(name="Example CPU", cores=2, instruction_sets=("avx2",), bf16=False),
            memory_total=16_000_000_000,
            memory_free=12_000_000_000,
            disk_free=None,
            os="Linux",
        ),
        matrix_gflops=53.8,
        estimate=Estimate(
            phases=(
                Phase(name="load", parts={"weights": 540_000_000, "runtime": 300_000_000}),
                Phase(
                    name="backward",
                    parts={
                        "weights": 540_000_000,
                        "adapters": 20_000_000,
                        "gradients": 20_000_000,
                        "optimizer": 40_000_000,
                        "activations": 700_000_000,
                        "logits": 310_000_000,
                        "runtime": 420_000_000,
                    },
                ),
            ),
            tensors=gb(1.4, 1.6, 1.9),
            process=gb(1.8, 2.05, 2.4),
            seconds=Range(low=250, expected=300, high=330),
            tokens_per_second=Range(low=200, expected=240, high=290),
            trainable_parameters=4_884_480,
            total_parameters=139_399_488,
            flops=1e14,
            basis="formula",
            assumptions=("activations kept, not recomputed",),
        ),
        data=DataReport(
            format="messages",
            splits=(
                split.model_copy(update={"tokens": lengths, "dropped": {"empty answer": 8}}),
                split.model_copy(update={"name": "test", "read": 96, "kept": 96, "duplicates": 0}),
            ),
            prompt_leakage={"test": 2},
            digest="cd",
        ),
        findings=(
            Finding(
                level="warning", code="empty-answer", message="empty answers", count=8, fix="they are dropped"
            ),
        ),
        train=TrainResult(
            steps=160,
            epochs=3,
            first_loss=2.83,
            last_loss=0.27,
            best_step=160,
            best_validation_loss=0.3713,
            selected_checkpoint="checkpoints/step-160",
            seconds=341,
            tokens=82_000,
            trained_tokens=31_000,
            tokens_per_second=241,
            peak_memory=2_210_000_000,
            trainable_parameters=4_884_480,
            total_parameters=139_399_488,
            device="cpu",
            dtype="float32",
        ),
        points=curve_points(160),
        baseline={"test": test[0], "reworded": reworded[0]},
        tuned={"test": test[1], "reworded": reworded[1]},
        comparisons=(compare(*test), compare(*reworded)),
        artifacts=(
            Artifact(
                kind="adapter",
                path="artifacts/adapter",
                bytes=19_600_000,
                sha256="1" * 64,
                predicted_bytes=19_540_000,
            ),
            Artifact(
                kind="merged", path="artifacts/merged", bytes=538_000_000, sha256="2" * 64, parity=parity
            ),
            Artifact(
                kind="gguf:Q8_0",
                path="artifacts/orders-Q8_0.gguf",
                bytes=144_810_848,
                sha256="3" * 64,
                predicted_bytes=144_800_000,
                parity=parity,
            ),
            Artifact(
                kind="gguf:Q4_K_M",
                path="artifacts/orders-Q4_K_M.gguf",
                bytes=105_453_920,
                sha256="4" * 64,
                parity=failed,
            ),
        ),
        licence=Licence(
            id="apache-2.0",
            name="Apache License 2.0",
            osi_approved=True,
            commercial_use="yes",
            acceptable_use_policy=False,
            may_train_others="yes",
            attribution=True,
            redistribution="yes",
        ),
        commands=(
            Command("luthier chat orders-20261122-4f1c", "talk to the tuned model"),
            Command("luthier evaluate orders-20261122-4f1c --data more.jsonl", "judge it on other rows"),
        ),
        versions={"luthier": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
    )


@pytest.fixture(scope="module")
def context() -> ReportContext:
    return full_context()


@pytest.fixture(scope="module")
def page(context: ReportContext) -> str:
    return render_html(context)


class Tags(HTMLParser):
    """Collects tags with their attributes, and checks that they close in order."""

    VOID = frozenset({"meta", "input", "rect", "line", "path", "br", "img", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def requests_of(page: str) -> list[str]:
    """Everything that a browser would fetch or run."""
    tags = Tags(page).tags
    found = [f"<{tag}>" for tag, _ in tags if tag in ("script", "link", "iframe", "object", "img", "base")]
    for tag, attributes in tags:
        for name, value in attributes.items():
            if name in ("src", "srcset", "href", "action", "data", "background", "poster", "xlink:href"):
                if not str(value).startswith("#"):
                    found.append(f"{tag} {name}={value}")
            elif name.startswith("on"):
                found.append(f"{tag} {name}")
    return found + re.findall(r"url\([^)]*\)|@import[^;]*", page)


def test_the_page_asks_for_nothing(page: str) -> None:
    assert requests_of(page) == []
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_check_would_see_requests() -> None:
    for bad in (
        '<img src="x.png">',
        "<script>1</script>",
        '<a href="https://example.org">x</a>',
        "<style>@import 'x';</style>",
        '<p onclick="x"></p>',
    ):
        assert requests_of(bad)


def test_every_part_is_shown(page: str) -> None:
    for part in ("scores", "answers", "changed", "training", "predicted", "chosen", "data", "artifacts"):
        assert f'<section id="{part}">' in page
        assert f'href="#{part}"' in page
    for text in (
        "The tuning helped",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "LoRA rank 16",
        "fits 2.1 of 4.0 GB",
        "2.06 GiB",
        "5 min 41 s",
        "3 % above the band",
        "within the band",
        "214/214 tokens",
        "53.8 GFLOP/s",
        "2 prompts stand in train too",
        "keep the copyright and licence notices",
        "luthier chat orders-20261122-4f1c",
        "sequence_length: 192",
    ):
        assert text in page, text


def test_figures_are_those_of_the_records(context: ReportContext, page: str) -> None:
    for comparison in context.comparisons:
        for d in comparison.differences:
            for metric in (d.baseline, d.tuned):
                assert f"{metric.value * 100:.1f} %" in page
                assert f"{metric.low * 100:.1f} to {metric.high * 100:.1f}" in page
            assert f"+{d.delta.value * 100:.1f}" in page
            assert f"{d.improved} / {d.regressed}" in page


def test_no_line_of_the_verdict_ends_before_a_per_cent_sign(page: str) -> None:
    banner = page.partition('<div class="verdict')[2].partition("</div>")[0]
    assert re.search("[0-9]\N{NO-BREAK SPACE}%", banner)
    assert not re.search("[0-9] %", banner)


def test_both_themes_print_and_narrow_screens(page: str) -> None:
    assert "color-scheme: light dark" in page
    assert re.search(r"--paper: light-dark\(#[0-9a-f]{6}, #[0-9a-f]{6}\)", page)
    assert ":root:has(#theme-dark:checked) { color-scheme: dark; }" in page
    assert "@media print" in page
    assert "@media (max-width: 560px)" in page
    assert 'name="viewport"' in page


def test_charts_have_tables_and_words(page: str) -> None:
    parsed = Tags(page)
    plots = [a for _, a in parsed.tags if a.get("role") == "img"]
    assert len(plots) == 5
    assert all(len(a["aria-label"] or "") > 30 for a in plots)
    assert page.count("<summary>Data table</summary>") == 5
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in parsed.tags].count("h1") == 1


def test_hostile_text_stays_text(context: ReportContext) -> None:
    def spoil(result: EvalResult) -> EvalResult:
        rows = [
            r.model_copy(update={"answer": HOSTILE, "prompt": HOSTILE, "expected": HOSTILE + "\x00\u202eabc"})
            for r in result.rows
        ]
        return result.model_copy(
            update={"rows": tuple(rows), "fields": {HOSTILE: result.metrics[result.primary]}}
        )

    spoiled = replace(
        context,
        recipe=context.recipe.model_copy(update={"name": HOSTILE, "sources": {"seed": HOSTILE}}),
        baseline={k: spoil(v) for k, v in context.baseline.items()},
        tuned={k: spoil(v) for k, v in context.tuned.items()},
        findings=(Finding(level="error", code="x", message=HOSTILE, fix=HOSTILE),),
        artifacts=(Artifact(kind=HOSTILE, path=HOSTILE, bytes=1, sha256=HOSTILE, notes=(HOSTILE,)),),
        commands=(Command(HOSTILE, HOSTILE),),
        versions={HOSTILE: HOSTILE},
        status=Status(state="failed", failure=Failure(kind="x", message=HOSTILE, hint=HOSTILE, exit_code=1)),
    )
    page = render_html(spoiled)
    assert requests_of(page) == []
    assert "{{ 7*7 }}" in page
    assert "\x00" not in page
    assert "\u202e" not in page
    text = render_markdown(spoiled)
    for line in text.splitlines():
        if line.startswith("|") and "alert" in line:
            assert "<script" not in line


def parts_left_out() -> list[tuple[str, dict[str, Any]]]:
    return [
        ("nothing but a recipe", {
            "status": None, "hardware": None, "estimate": None, "data": None, "findings": (), "train": None,
            "points": (), "baseline": {}, "tuned": {}, "comparisons": (), "artifacts": (), "licence": None,
            "commands": (), "versions": {}, "created": None, "matrix_gflops": None,
        }),
        ("stopped while training", {
            "status": Status(state="stopped", stage="train", seconds={"baseline": 9.0}), "train": None,
            "tuned": {}, "comparisons": (), "artifacts": (), "points": curve_points(7),
        }),
        ("one step only", {"points": curve_points(1)}),
        ("no test rows", {"baseline": {}, "tuned": {}, "comparisons": ()}),
        ("no prediction of time", {"estimate": None}),
    ]  # fmt: skip


@pytest.mark.parametrize(("what", "missing"), parts_left_out())
def test_missing_parts_are_left_out(context: ReportContext, what: str, missing: dict[str, Any]) -> None:
    partial = replace(context, **missing)
    page = render_html(partial)
    assert requests_of(page) == []
    for anchor in re.findall(r'href="#([a-z]+)"', page):
        assert f'id="{anchor}"' in page, (what, anchor)
    assert "None" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL), what
    if not partial.comparisons:
        assert "helped" not in page
    assert render_markdown(partial).startswith("# orders")


def test_a_failed_run_says_why(context: ReportContext) -> None:
    failure = Failure(kind="TrainingError", message="the loss is not a number", hint="lower it", exit_code=1)
    page = render_html(replace(context, status=Status(state="failed", failure=failure), comparisons=()))
    assert "The run failed" in page
    assert "the loss is not a number" in page


def test_doubt_is_said(context: ReportContext) -> None:
    base, tuned = judged("tiny", 12, 0.4, 0.5)
    page = render_html(
        replace(context, baseline={"tiny": base}, tuned={"tiny": tuned}, comparisons=(compare(base, tuned),))
    )
    assert "No clear difference" in page
    assert "fewer than ten are never taken as proof" in page
    assert "four times in five" in page


def test_an_interval_beyond_zero_that_proves_nothing_is_explained() -> None:
    difference = compare(*judged("test", 60, 0.4, 0.5)).main
    metric = Metric(value=0.1, low=0.01, high=0.19, n=60)
    doubtful = difference.model_copy(
        update={"delta": metric, "p_value": 0.07, "verdict": "inconclusive", "improved": 20, "regressed": 8}
    )
    assert "p is 0.070 after correction" in (doubt(doubtful) or "")
    assert doubt(doubtful.model_copy(update={"verdict": "better"})) is None


def test_floors_and_other_models_stand_beside(context: ReportContext) -> None:
    base = context.baseline["test"]
    floor = base.model_copy(update={"model": "floor: commonest answer <b>"})
    shown = replace(context, others=(floor,))
    page = render_html(shown)
    assert "All that answered these rows" in page
    assert "floor: commonest answer &lt;b&gt;" in page
    assert page.index("All that answered") < page.index("floor: commonest")
    assert requests_of(page) == []
    assert "| test | floor: commonest answer" in render_markdown(shown)
    assert "All that answered" not in render_html(context)


def test_markdown_has_the_same_verdict(context: ReportContext) -> None:
    text = render_markdown(context)
    assert text.startswith("# orders: The tuning helped")
    assert "| test | Fields right (primary) |" in text
    assert "## Artifacts" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert tables
    assert all(line.rstrip().endswith("|") for line in tables)


def test_written_in_one_piece(tmp_path: Path, context: ReportContext) -> None:
    (tmp_path / "report.html").write_text("old")
    path = write_report(tmp_path, context)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert write_report(tmp_path, context, markdown=True).name == "report.md"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.md"]


def test_points_come_from_the_metrics_file() -> None:
    lines = [
        {"kind": "note", "text": "x"},
        {"kind": "step", "step": 1, "loss": 2.0, "grad_norm": 1.0, "memory": 10},
        {"kind": "step", "step": 2, "loss": 1.5},
        {"kind": "validation", "step": 2, "loss": 1.6, "best": True},
        {"kind": "step", "step": 2, "loss": 1.4},
        {"kind": "step", "step": 3, "loss": float("nan")},
    ]
    points = read_points(lines)
    assert [(p.step, p.loss, p.validation_loss) for p in points] == [
        (1, 2.0, None),
        (2, 1.4, 1.6),
        (3, None, None),
    ]


def test_chart_helpers() -> None:
    assert nice_ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(0.03, 0.31, 4) == [0.1, 0.2, 0.3]
    assert nice_ticks(5, 5) == [5]
    assert [y for _, y in smooth([(1, 4.0), (2, 4.0)])] == pytest.approx([4.0, 4.0])
    spike = [(float(i), 100.0 if i == 777 else 0.0) for i in range(10_000)]
    kept = thin(spike)
    assert len(kept) <= 1_300
    assert (777.0, 100.0) in kept
    assert chart("x", [Series("one", [(1, 2.0)], "tuned")]) is None
    flat = chart("x", [Series("flat", [(1, 2.0), (2, 2.0)], "tuned")])
    assert flat is not None
    assert "nan" not in flat.lines[0].path


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (size(271_000_000), "271.0 MB"),
        (size(1_570_000_000), "1.6 GB"),
        (size(999_970), "1.0 MB"),
        (size(24_000_000_000), "24.0 GB"),
        (size(12), "12 B"),
        (duration(4.21), "4.2 s"),
        (duration(59.7), "60 s"),
        (duration(385), "6 min 25 s"),
        (duration(11_400), "3 h 10 min"),
        (figure(0.0002), "2e-4"),
        (figure(12345), "12345"),
        (figure(-0.5), "\u22120.5"),
        (figure(0), "0"),
        (clean("a\x07b\u202ec\n"), "abc\n"),
        (markdown_cell("a|b\n<i>"), "a\\|b &lt;i&gt;"),
        (markdown_fence("``` x"), "````text\n``` x\n````"),
    ],
)
def test_words(shown: str, text: str) -> None:
    assert shown == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=300))
def test_shown_text_is_harmless(text: str) -> None:
    shown = clean(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    cell = markdown_cell(text)
    assert "\n" not in cell
    assert "<" not in cell
    assert "|" not in cell.replace("\\|", "")
