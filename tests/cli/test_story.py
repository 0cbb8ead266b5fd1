"""Stages of a run as a terminal of 80 columns shows them: nothing is cut short."""

from pathlib import Path

from luthier.cli import follow, story, sweep_words
from luthier.evaluation.statistics import PairedScores, compare_scores, metric_of
from luthier.runs.report import measured
from luthier.runs.report.context import ReportContext
from luthier.schema.base import Range
from luthier.schema.estimate import Estimate
from luthier.schema.recipe import Recipe
from luthier.schema.results import Artifact, Comparison, ParityCheck, Quality, TrainResult
from luthier.schema.sweep import Axis, SweepChoice, SweepResult, Trial
from studio_case import made_run

RECIPE = Recipe.model_validate(
    {"model": {"id": "m"}, "data": {"train": ["t.jsonl"]}, "method": {"name": "lora"}}
)
BEFORE, AFTER = [0.0] * 96, [1.0] * 86 + [0.0] * 10


def comparison(split, after=AFTER):
    import numpy as np

    names = ("field_exact", "json_valid")
    pairs = [PairedScores(name, np.array(BEFORE), np.array(after)) for name in names]
    found = tuple(compare_scores(pairs))
    return Comparison(split=split, primary="field_exact", differences=found, verdict=found[0].verdict)


def artifact(kind, *, problems=()):
    score, none = metric_of(AFTER), metric_of([0.0] * 96)
    parity = ParityCheck(
        prompts=14, equal_token_ids=14, compared_tokens=427, equal_tokens=404, near_ties=0, mean_kl=0.041,
        stops=True, passed=not problems, problems=problems,
    )  # fmt: skip
    quality = Quality(
        split="test", metric="field_exact", score=score, difference=none, verdict="inconclusive", kept=0.99,
        tokens_per_second=47.2, perplexity=1.0831,
    )  # fmt: skip
    told = {"kind": kind, "path": f"artifacts/{kind}", "bytes": 105_453_920, "sha256": "0" * 64}
    return Artifact.model_validate(told | {"parity": parity, "quality": quality})


def test_comparisons_fit_a_narrow_terminal(capsys):
    story.show_comparisons([comparison("test"), comparison("test_rephrased")])
    said = capsys.readouterr().out
    assert "…" not in said
    assert "test_rephrased, 96 rows" in said
    [line] = [line for line in said.splitlines() if line.startswith("  json_valid")][:1]
    assert "0.0%" in line
    assert "89.6%" in line
    assert "+89.6  [" in line
    assert line.split()[-1] == "better"


def test_an_interval_without_zero_and_no_clear_difference_is_explained(capsys):
    few = comparison("test", after=[1.0] * 8 + [0.0] * 88)
    assert few.main.delta.low > 0
    story.show_comparisons([few])
    said = " ".join(capsys.readouterr().out.split())
    assert "test: no clear difference" in said
    assert "Only 8 of 96 rows changed; fewer than ten are never taken as proof." in said
    story.show_comparisons([comparison("test")])
    assert "rows changed" not in capsys.readouterr().out


def test_artifacts_fit_a_narrow_terminal(capsys):
    broken = artifact("gguf:Q8_0", problems=("row 1: broken",))
    story.show_artifacts([artifact("gguf:Q4_K_M"), broken], Path())
    said = capsys.readouterr().out
    assert "…" not in said
    checked, failed, *_ = [line for line in said.splitlines() if line.startswith("  gguf:Q")]
    assert checked.split() == ["gguf:Q4_K_M", "105.5", "MB", "14/14", "404/427", "0.0410", "passed"]
    assert failed.split()[-1] == "failed"
    assert "  gguf:Q8_0: row 1: broken" in said
    assert "field_exact on 96 rows of test" in said
    lines = [line.split() for line in said.splitlines()]
    assert ["99%", "1.083", "47"] in [line[-3:] for line in lines]


def test_a_command_to_try_next_is_whole_on_a_narrow_terminal(capsys):
    long = f"luthier train {'folder/' * 12}recipe.yaml training.epochs=2"
    story.show_next([("luthier chat quickstart", "talk to it"), (long, "the same with another setting")])
    lines = capsys.readouterr().out.splitlines()
    assert f"  {long}" in lines
    assert "      the same with another setting" in lines
    story.show_next([("luthier chat quickstart", "talk to it"), ("luthier runs", "all of them")])
    assert capsys.readouterr().out.splitlines() == [
        "  luthier chat quickstart  talk to it",
        "  luthier runs             all of them",
    ]


def test_bytes_of_a_piece_of_work_are_told_as_a_share(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CI", "1")
    monkeypatch.setattr(follow, "PLAIN_EVERY", 0.0)
    for what, done, total in (("quantising", 145_156_608, 269_100_288), ("in llama.cpp", 5, 14)):
        run = made_run(tmp_path, f"run-{done}", steps=0)
        run.append("events", {"event": "progress", "what": what, "done": done, "total": total})
        follow.Follower(run, lambda *_: None, from_start=True).follow()
    assert capsys.readouterr().err.splitlines() == ["  quantising 54%", "  in llama.cpp 5/14"]


def test_runs_of_a_sweep_are_told_apart_on_a_narrow_terminal(capsys):
    names = [f"orders-sweep-20261122-193217-{number:03}" for number in range(2)]
    trials = tuple(
        Trial(
            number=number, name=name, run=name, state="done", loss=5.4, seconds=1.1, peak_memory=1 << 30,
            settings={"training.learning_rate": "1e-4", "method.rank": "16"}, why="every setting is tried",
        )
        for number, name in enumerate(names)
    )  # fmt: skip
    space = (Axis(key="training.learning_rate", choices=("1e-4",)), Axis(key="method.rank", choices=("16",)))
    choice = SweepChoice(name="orders-sweep", space=space)
    sweep_words.show(SweepResult(choice=choice, path="sweep", trials=trials), json=False)
    said = capsys.readouterr().out
    assert "…" not in said
    folded = "".join(line[2:].split("  ")[0].strip() for line in said.splitlines())
    assert all(name in folded for name in names)


def trained(device, seconds):
    values = {
        "steps": 24, "epochs": 1, "first_loss": 5.8, "last_loss": 5.4, "best_step": 24, "tokens": 2611,
        "best_validation_loss": None, "selected_checkpoint": "checkpoints/24", "seconds": seconds,
        "trained_tokens": 600, "tokens_per_second": 5009, "peak_memory": 2 << 30, "trainable_parameters": 1,
        "total_parameters": 2, "device": device, "dtype": "bfloat16",
    }  # fmt: skip
    return TrainResult.model_validate(values)


def predicted(seconds):
    process, tensors, time = (
        Range(low=value, expected=value, high=value) for value in (4 << 30, 1 << 30, seconds)
    )
    return Estimate(
        phases=(), process=process, tensors=tensors, seconds=time, trainable_parameters=1, total_parameters=2,
        flops=1.0, basis="formula",
    )  # fmt: skip


def test_a_peak_is_held_against_what_it_is_measured_as(capsys):
    story.show_training(trained("cpu", 20.0), predicted(10.0))
    assert "(predicted 4.00 GiB, -50%)" in capsys.readouterr().out
    story.show_training(trained("cuda:0", 20.0), predicted(10.0))
    assert "(predicted 1.00 GiB, +100%)" in capsys.readouterr().out


def test_a_time_of_nearly_nothing_is_told_without_a_percentage(capsys):
    story.show_training(trained("cpu", 20.0), predicted(10.0))
    assert "20 s  (predicted 10 s, +100%)" in capsys.readouterr().out
    story.show_training(trained("cpu", 0.6), predicted(0.003))
    assert "0.6 s  (predicted 3 ms)" in capsys.readouterr().out
    context = ReportContext("run", RECIPE, estimate=predicted(0.003), train=trained("cpu", 0.6))
    [band] = [one for one in measured.bands(context) if "time" in one.label]
    assert (band.predicted, band.verdict) == ("3 ms", "far above the band")
