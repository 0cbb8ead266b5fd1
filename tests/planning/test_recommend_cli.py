"""The commands that choose: what they print, as tables and as JSON, and how they fail."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from luthier.catalog.index import forget, model_card
from luthier.cli.main import main
from luthier.errors import LuthierError, UsageError
from luthier.planning.added import card_from_directory, save_card
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.recommend import recommend
from luthier.planning.recommend.words import make_request

SMOL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert (left.value.code or 0) == code, capsys.readouterr()
    caught = capsys.readouterr()
    return caught.out + caught.err


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A data folder of the test's own, and an index that is read anew."""
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    forget()
    yield tmp_path
    forget()


@pytest.fixture
def smol(tmp_path: Path) -> Path:
    folder = tmp_path / "smol"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMOL))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ tools }}<think>"}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n- de\n---\n# A model\n")
    return folder


def test_models_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "models", "--family", "qwen3", "--max-size", "2B", "--json"))
    assert found["version"] == 1
    names = [row["id"] for row in found["models"]]
    assert "Qwen/Qwen3-0.6B" in names
    assert all(row["parameters"] <= 2e9 for row in found["models"])
    again = json.loads(run(capsys, "models", "--family", "qwen3", "--max-size", "2B", "--json"))
    assert [row["id"] for row in again["models"]] == names


def test_filters_combine(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("models", "--licence", "apache-2.0", "--language", "german", "--context", "32768", "--purpose")
    found = json.loads(run(capsys, *words, "similarity", "--json"))["models"]
    assert [row["id"] for row in found] == [
        row["id"] for row in found if row["licence"] == "apache-2.0" and row["context"] >= 32_768
    ]
    assert any(row["id"] == "Qwen/Qwen3-Embedding-0.6B" for row in found)
    fits = json.loads(
        run(capsys, "models", "--family", "llama-3", "--fits", "qlora", "--hardware", "vram 12GB", "--json")
    )
    names = {row["id"]: row["bytes_needed"] for row in fits["models"]}
    assert "meta-llama/Llama-3.1-8B-Instruct" in names
    assert "meta-llama/Llama-3.3-70B-Instruct" not in names


def test_a_table_in_a_pipe_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "models", "--family", "deepseek")
    assert "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B" in text
    assert "…" not in text


def test_show_says_how_it_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "models", "show", "Llama 3.3 8B")
    assert "meta-llama/Llama-3.1-8B-Instruct" in text
    assert "70B-Instruct only" in text
    assert "llama-models" in text
    unknown = run(capsys, "models", "show", "llama-3.1-9b", code=2)
    assert "did you mean" in unknown


def test_licences_cite_and_do_not_advise(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "licences", "show", "Llama-3.1-8B-Instruct")
    assert "section 2" in text
    assert "Built with Llama" in text
    assert "not legal advice" in text
    found = json.loads(run(capsys, "licences", "--json"))
    assert {terms["id"] for terms in found["licences"]} >= {
        "apache-2.0",
        "llama3.1",
        "gemma",
        "qwen-research",
    }
    assert sum(terms["models"] for terms in found["licences"]) == 176


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "doctor", "--offline", "--json"))
    assert found["hardware"]["processor"]["cores"] >= 1
    assert {f["what"] for f in found["findings"]} >= {"Processor", "Memory", "GPU", "Disk", "Cache"}
    text = run(capsys, "doctor", "--hardware", "T4")
    assert "no bf16" in text


def test_recommend_prints_what_an_engineer_asks(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "recommend", "--hardware", "rtx 4090", "--rows", "2000", "--explain")
    for words in ("Memory at the peak", "weights", "Time:", "learning_rate", "Left out", "too large",
                  "The public guides would say", "duty:", "Serving:", "adds up from"):  # fmt: skip
        assert words in text, words
    assert "not legal advice" in text


def test_recommend_writes_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    words = ("recommend", "tag articles with topics", "--hardware", "cpu:16GB", "-o", str(path))
    text = run(capsys, *words)
    assert "means purpose multi-label-classification" in text
    recipe = path.read_text()
    assert "task: multi-label-classification" in recipe
    assert "sources:" in recipe


def test_as_guide(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "recommend", "--hardware", "rtx 4090", "--as-guide", "b")
    assert "Llama 3.3 8B" in text
    assert "✗" in text
    assert "is not a guide" in run(capsys, "recommend", "--as-guide", "d", code=2)


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "recommend", "--hardware", "vram 2GB", "--size", "expert", code=3)
    assert "allow other sizes" in text
    assert "would hold it" in text


def test_bad_words_name_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean chat" in run(capsys, "recommend", "--purpose", "chatt", code=2)
    assert "rtx-4090" in run(capsys, "recommend", "--hardware", "rtx 4091", code=2)
    assert "did you mean decoder" in run(capsys, "models", "--kind", "decodr", code=2)
    assert "8B, 500M" in run(capsys, "models", "--max-size", "huge", code=2)
    both = run(capsys, "recommend", "--hardware", "rtx 4090", "--vram", "8GB", code=2)
    assert "several machines" in both


def test_init_walks_the_checklist(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    answers = ("--answers", "answer our customers", "--answers", "edge", "--answers", "commercial")
    rest = ("--answers", "apache-2.0", "--answers", "1", "--hardware", "rtx 4090")
    text = run(capsys, "init", str(path), *answers, *rest)
    for step in ("Identify the task", "Audit the hardware", "Select the scale", "Verify the licence",
                 "Measure the baseline"):  # fmt: skip
        assert step in text
    assert "task: chat" in path.read_text()
    refused = run(capsys, "init", str(path), "--answers", "chat", "--answers", "giant", code=2)
    assert "not one of" in refused


def test_another_model_is_counted_from_its_config(own_home: Path, smol: Path) -> None:
    card, unknown = card_from_directory(smol, name="mine/smol")
    assert card.total == 134_515_008
    assert card.languages == ("en", "de")
    assert card.licence == "apache-2.0"
    assert set(card.tags) == {"tools", "thinking"}
    assert card.gguf.supported
    assert card.family == "SmolLM2"
    assert unknown == ()
    save_card(card)
    assert model_card("mine/smol").added_from == str(smol)


def test_an_added_model_works_everywhere(
    own_home: Path, smol: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (smol / "README.md").unlink()
    text = run(capsys, "models", "add", str(smol), "--name", "mine/smol")
    assert "not known: licence" in text
    plan = json.loads(run(capsys, "recommend", "--model", "mine/smol", "--hardware", "cpu:16GB", "--json"))[
        "plan"
    ]
    assert plan["candidates"][0]["card"]["id"] == "mine/smol"
    assert "not verified" in " ".join(plan["candidates"][0]["warnings"])
    assert "removed" in run(capsys, "models", "rm", "mine/smol")
    assert "no entry called" in run(capsys, "models", "rm", "mine/smol", code=2)


def test_an_added_model_takes_no_shipped_name(own_home: Path, smol: Path) -> None:
    card, _ = card_from_directory(smol, name="Qwen/Qwen3-0.6B")
    with pytest.raises(UsageError, match="stands in the catalogue"):
        save_card(card)


def test_a_folder_without_config(own_home: Path, smol: Path) -> None:
    shutil.rmtree(smol)
    smol.mkdir()
    with pytest.raises(LuthierError):
        card_from_directory(smol)


def test_money_needs_a_price() -> None:
    with pytest.raises(UsageError) as caught:
        make_request({"max_cost": 5.0})
    assert "--price-per-hour" in (caught.value.hint or "")


def test_the_next_command_asks_the_same_again() -> None:
    """What is shown can be typed as it stands, and says all that was asked."""
    request = make_request(
        {"use": "commercial", "languages": "de", "priority": "speed", "target": "phone:8GB"}
    )
    shown = recommend(request, parse_hardware("rtx 3060")).next_commands[1]
    assert "..." not in shown
    words = shlex.split(shown.removeprefix("luthier recommend "))
    for flag in ("--hardware", "--use", "--language", "--priority", "--target", "--model"):
        assert flag in words, shown
    assert words[words.index("--hardware") + 1] == "rtx 3060"
    assert words[words.index("--target") + 1] == "phone:8GB"


def rows_file(folder: Path, answers: list[str]) -> Path:
    path = folder / "rows.jsonl"
    question = "Wie ist das Wetter und was ist mit der Rechnung, die ich nicht für mich habe?"
    rows = [{"prompt": f"{question} {i}", "completion": answer} for i, answer in enumerate(answers)]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_the_data_say_languages_and_structure(tmp_path: Path) -> None:
    from luthier.cli.recommend import read_request

    request = read_request(None, {}, data=rows_file(tmp_path, [f'{{"count": {i}}}' for i in range(80)]))
    assert request.languages == ("de",)
    assert request.features == ("json",)
    assert request.rows == 80
    assert any("german (100% of the rows)" in line for line in request.mapped)
    told = read_request(None, {"languages": "en", "purpose": "similarity"}, data=tmp_path / "rows.jsonl")
    assert (told.languages, told.features) == (("en",), ())


def test_labels_in_the_data_are_noticed(tmp_path: Path) -> None:
    from luthier.cli.recommend import read_request

    answers = ["billing", "weather", "other"] * 30
    request = read_request(None, {}, data=rows_file(tmp_path, answers))
    plan = recommend(request, parse_hardware("rtx 3060"))
    assert any("3 labels that repeat" in line for line in plan.advice)
    free = read_request(None, {}, data=rows_file(tmp_path, [f"Antwort {i} von vielen" for i in range(90)]))
    assert not any("labels" in line for line in recommend(free, parse_hardware("rtx 3060")).advice)
