"""Each mistake gets its own words and exit code, and never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from command import luthier
from luthier.cli.main import main
from studio_case import made_run
from tiny import save_tiny_model, write_recipe, write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    save_tiny_model(folder / "model")
    write_recipe(folder, folder / "model")
    return folder


def fails(place: Path, *words: str, code: int) -> str:
    done = luthier(place, *words, code=code, width=400)
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr


def row(*messages: tuple[str, str]) -> str:
    return json.dumps({"messages": [{"role": r, "content": c} for r, c in messages]})


def test_missing_recipe(place: Path) -> None:
    assert "none.yaml: no such file" in fails(place, "train", "none.yaml", code=2)


def test_unknown_key_has_line_and_nearest_name(place: Path) -> None:
    (place / "typo.yaml").write_text((place / "recipe.yaml").read_text().replace("epochs:", "epohcs:"))
    words = fails(place, "train", "typo.yaml", code=2)
    assert "typo.yaml:6: training.epohcs is not a setting of training" in words
    assert "did you mean epochs?" in words


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_what_is_no_port(place: Path, port: str) -> None:
    words = fails(place, "studio", f"--port={port}", code=2)
    assert f"{port} is not a port" in words
    assert "0 takes a free one" in words


def test_missing_data_file(place: Path) -> None:
    words = fails(place, "train", "recipe.yaml", "data.train=nowhere.jsonl", code=2)
    assert "nowhere.jsonl" in words


def test_ctrl_c_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("luthier.cli.main.build", lambda: pressed)
    for words, where in ((["train", "recipe.yaml"], 1), (["train", "recipe.yaml", "--json"], 0)):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 130
        assert "give the command again to go on" in capsys.readouterr()[where]


def test_data_are_looked_for_before_a_model_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    slip = "model.id=HuggingFaceTB/SmolLM2-135M-Instuct"
    for command in ("train", "plan"):
        words = fails(place, command, "recipe.yaml", slip, "data.test=tset.jsonl", code=2)
        assert "tset.jsonl: there is no such file" in words
    assert "did you mean test.jsonl" in words
    words = fails(place, "train", "recipe.yaml", slip, code=6)
    assert "did you mean HuggingFaceTB/SmolLM2-135M-Instruct" in words
    words = fails(place, "train", "recipe.yaml", slip, "--offline", code=2)
    assert "did you mean HuggingFaceTB/SmolLM2-135M-Instruct" in words


def test_a_configuration_that_is_missing_is_no_recipe(place: Path) -> None:
    words = fails(place, "import", "nope.yml", code=2)
    assert "nope.yml: no such file" in words
    assert "give a configuration of one of axolotl, LLaMA-Factory" in words
    assert "luthier init" not in words


def test_broken_json_names_its_line(place: Path) -> None:
    lines = write_rows(place / "broken.jsonl", 5).read_text().splitlines()
    lines[2] = lines[2][:-4]
    (place / "broken.jsonl").write_text("\n".join(lines) + "\n")
    assert "broken.jsonl:3" in fails(place, "train", "recipe.yaml", "data.train=broken.jsonl", code=4)


def test_empty_data(place: Path) -> None:
    (place / "empty.jsonl").write_text("")
    assert "empty" in fails(place, "train", "recipe.yaml", "data.train=empty.jsonl", code=4)


def test_row_without_an_assistant_turn(place: Path) -> None:
    (place / "mute.jsonl").write_text(row(("user", "hello")) + "\n")
    words = fails(place, "train", "recipe.yaml", "data.train=mute.jsonl", code=4)
    assert "mute.jsonl:1" in words
    assert "assistant" in words


def test_row_longer_than_the_context(place: Path) -> None:
    (place / "long.jsonl").write_text(row(("user", "old hat " * 400), ("assistant", "yes")) + "\n")
    words = fails(place, "train", "recipe.yaml", "data.train=long.jsonl", code=4)
    assert "long.jsonl:1" in words
    assert "256" in words


def test_unknown_model_without_network(place: Path) -> None:
    words = fails(place, "train", "recipe.yaml", "model.id=some-org/no-such-model", "--offline", code=2)
    assert "some-org/no-such-model" in words
    assert "luthier get" in words


def test_model_without_a_template(place: Path) -> None:
    bare = save_tiny_model(place / "bare")
    config = json.loads((bare / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    assert "chat template" in fails(place, "train", "recipe.yaml", f"model.id={bare}", code=2)


def test_not_enough_memory(place: Path) -> None:
    words = fails(
        place,
        "train",
        "recipe.yaml",
        "training.micro_batch_size=2000000",
        "training.batch_size=2000000",
        code=3,
    )
    assert "GiB" in words


def test_gguf_without_its_converter_stops_before_training(place: Path) -> None:
    assert "luthier setup gguf" in fails(place, "train", "recipe.yaml", "export.gguf=F16", code=1)
    assert not (place / "runs").exists()


def test_unknown_command_run_and_export_type(place: Path) -> None:
    assert "train" in fails(place, "tarin", code=2)
    assert "no run" in fails(place, "runs", "show", "nothing", code=2)
    assert "no run" in fails(place, "export", "nothing", "--gguf", "Q4_K_M", code=2)


def test_errors_as_json(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "luthier", "train", "none.yaml", "--json"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["message"] == "no such file"


@pytest.mark.parametrize("words", [("models", "nothing"), ("train", "--nothing"), ("tarin",)])
def test_wrong_words_are_json_too_and_say_where_the_right_ones_stand(
    place: Path, words: tuple[str, ...]
) -> None:
    assert "--help" in fails(place, *words, code=2)
    done = luthier(place, *words, "--json", code=2)
    found = json.loads(done.stdout)["error"]
    assert found["kind"] == "UsageError"
    assert words[-1] in found["message"]
    assert done.stderr == ""


def test_ids_of_runs_are_whole_on_a_narrow_terminal(tmp_path: Path) -> None:
    ids = [f"all-minilm-l6-v2-rows-full-20261122-0709{n}" for n in (27, 58)]
    for run_id in ids:
        made_run(tmp_path, run_id, steps=12)
    said = luthier(tmp_path, "runs", width=70).stdout
    assert "…" not in said
    firsts = "".join(line[2:].split(" ")[0] for line in said.splitlines()[1:])
    assert firsts in (ids[0] + ids[1], ids[1] + ids[0])


def test_a_report_is_named_as_json(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    found = json.loads(luthier(tmp_path, "report", run.id, "--json").stdout)
    assert found["run"] == run.id
    assert Path(found["report"]).is_file()
    found = json.loads(luthier(tmp_path, "report", run.id, "--md", "--json").stdout)
    assert run.id in found["markdown"]


def test_a_begun_run_has_nothing_to_plan(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    words = fails(tmp_path, "train", "--resume", run.id, "--dry-run", code=2)
    assert f"luthier runs show {run.id}" in words
