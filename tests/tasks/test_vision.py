"""Models that see: loss and gradients of plain transformers and PEFT, answers, saved weights, refusals."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText

from luthier.catalog.purposes import check_supported
from luthier.data.load import load_splits
from luthier.data.seeing import load_seeing
from luthier.errors import Interrupted, LuthierError
from luthier.models.adapter_files import adapter_tensors
from luthier.models.load import quiet
from luthier.models.vision import image_processor, joined
from luthier.schema.recipe import Recipe
from luthier.tasks.registry import load_task
from luthier.tasks.vision import VisionTask, answer_about, vision_batch
from luthier.training import guard
from seeing import FAMILIES, kind_of, save_seeing_model, write_pictures

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
COLUMNS = {"prompt": "question", "completion": "answer"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("seeing")
    with quiet():
        for family in FAMILIES:
            save_seeing_model(root / family, family)
    write_pictures(root, 12)
    write_pictures(root, 4, name="test.jsonl")
    # A row without an image, and one with two.
    plain = {"question": "What is it?", "answer": "grey"}
    two = {
        "images": ["images/train-0.png", "images/train-1.png"],
        "question": "<image> or <image>?",
        "answer": "both",
    }
    with (root / "train.jsonl").open("a") as file:
        file.write(json.dumps(plain) + "\n" + json.dumps(two) + "\n")
    return root


def recipe_of(root: Path, family: str, **sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": {"id": str(root / family), "dtype": "float32"},
        "method": {"name": "lora", "rank": 4, "alpha": 8},
        "vision": {},
        "data": {
            "train": str(root / "train.jsonl"),
            "validation": str(root / "test.jsonl"),
            "test": str(root / "test.jsonl"),
            "columns": COLUMNS,
        },
        "training": {
            "epochs": 1, "learning_rate": 0.01, "batch_size": 4, "micro_batch_size": 2,
            "sequence_length": 256, "activation_checkpointing": "none", "evaluate_every": 10,
            "checkpoint_every": 10,
        },
        "evaluation": {"max_new_tokens": 4},
    }  # fmt: skip
    for key, value in sections.items():
        values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
    return Recipe.model_validate(values)


def task_of(recipe: Recipe) -> tuple[VisionTask, Any]:
    folder = Path(recipe.model.id)
    tokenizer = load_seeing(folder, max_pixels=recipe.vision.max_pixels if recipe.vision else None)
    with quiet():
        task = load_task(recipe, folder, tokenizer, device="cpu", cache=None)
    assert isinstance(task, VisionTask)
    data = load_splits(recipe, tokenizer, base=Path("/"), sequence_length=256)
    task.splits = data.splits
    return task, data.splits


def moved(task: VisionTask) -> None:
    """Trained weights that do something."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in task.model.named_parameters():
            if weight.requires_grad and not name.endswith("lora_A"):
                weight.add_(torch.randn(weight.shape, generator=draw) * 0.1)


def by_transformers(task: VisionTask, rows: Any) -> dict[str, Any]:
    """The same rows as transformers' own image processor and padding give them, all at once."""
    from PIL import Image

    longest = max(len(row.ids) for row in rows)
    pad = task.tokenizer.pad_id
    ids = torch.tensor([row.ids.tolist() + [pad] * (longest - len(row.ids)) for row in rows])
    mask = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows])
    trained = torch.tensor([row.trained.tolist() + [False] * (longest - len(row.ids)) for row in rows])
    pictures = [[Image.open(file).convert("RGB") for file in row.images] for row in rows]
    nested = kind_of(Path(task.recipe.model.id).name) == "smol"
    flat = pictures if nested else [one for row in pictures for one in row]
    found = image_processor(task.directory)(images=flat, return_tensors="pt")
    inputs = {name: value for name, value in found.items() if name != "num_crops"}
    inputs |= {"input_ids": ids, "attention_mask": mask, "labels": torch.where(trained, ids, -100)}
    kinds = (ids == task.seeing.soft_id).long()
    kind = kind_of(Path(task.recipe.model.id).name)
    return (
        inputs
        | ({"mm_token_type_ids": kinds.int()} if kind == "qwen" else {})
        | ({"token_type_ids": kinds} if kind == "gemma" else {})
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vision", [{}, {"tower": "adapters", "projector": True}], ids=["frozen", "tuned"])
def test_loss_and_gradients_are_those_of_transformers_and_peft(
    models: Path, tmp_path: Path, family: str, vision: dict[str, Any]
) -> None:
    task, splits = task_of(recipe_of(models, family, vision=vision))
    moved(task)
    rows = [row for row in splits.train if row.images][:3]
    loss = task.objective()(task.model, vision_batch(rows, task.eyes, pad_id=task.tokenizer.pad_id))
    loss.total.backward()
    task.trained_digest = "x"
    task.save_adapter(tmp_path)
    task.trained_digest = None
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForImageTextToText.from_pretrained(models / family, dtype=torch.float32)
        theirs = peft.PeftModel.from_pretrained(base, str(tmp_path), is_trainable=True).eval()
    found = theirs(**by_transformers(task, rows))
    torch.testing.assert_close(loss.total, found.loss * loss.weight, atol=1e-4, rtol=1e-5)
    (found.loss * loss.weight).backward()
    with torch.no_grad():
        for weight in task.model.parameters():
            if weight.requires_grad:
                assert weight.grad is not None
                weight.copy_(weight.grad)
    mine = adapter_tensors(task.model, task.whole)
    towers = {name for name in mine if "visual" in name or "vision" in name}
    assert bool(towers) == (vision != {}) or family.startswith("gemma")
    for name, weight in theirs.named_parameters():
        if weight.grad is not None:
            own = mine.pop(name.replace(".default", "").replace("modules_to_save.", ""))
            torch.testing.assert_close(own, weight.grad, atol=2e-4, rtol=2e-3, msg=name)
    assert not mine


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_trains_answers_and_saves_what_transformers_loads(
    models: Path, tmp_path: Path, family: str
) -> None:
    task, splits = task_of(recipe_of(models, family))
    seen: list[Any] = []
    result = task.fit(splits, tmp_path, recipe_digest="d", on_metrics=seen.append)
    assert result.steps == 4
    generator = task.tuned_generator(tmp_path)
    chats = [row.messages[:-1] for row in splits.tests["test"]]
    chats.append([{"role": "user", "content": "What is it?"}])
    answers = generator.generate(chats, max_new_tokens=4)
    alone = [generator.generate([chat], max_new_tokens=4)[0] for chat in chats]
    assert [one.token_ids for one in answers] == [one.token_ids for one in alone]
    rows = [row for row in splits.train if row.images][:2]
    batch = vision_batch(rows, task.eyes, pad_id=task.tokenizer.pad_id)
    with torch.no_grad():
        wanted, weight = task.objective()(task.model, batch)
    merged = task.save_merged(tmp_path / "merged")
    assert (merged / "preprocessor_config.json").is_file()
    with quiet():
        again = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32).eval()
        with torch.no_grad():
            found = again(**by_transformers(task, rows)).loss * weight
    torch.testing.assert_close(wanted, found, atol=1e-4, rtol=1e-4)
    question = {"text": chats[0][0]["content"][-1]["text"], "images": [chats[0][0]["content"][0]["image"]]}
    (told,) = answer_about(merged, [question], device="cpu", max_new_tokens=4)
    assert told["text"] == answers[0].text


def test_a_stopped_run_ends_where_a_whole_one_does(models: Path, tmp_path: Path) -> None:
    recipe = recipe_of(models, "qwen3_vl", vision={"tower": "adapters", "projector": True},
                       method={"dropout": 0.1})  # fmt: skip
    ended = []
    for place, stop in (("whole", 0), ("parts", 2), ("parts", 0)):
        task, splits = task_of(recipe)
        asked: list[int] = []

        def control(asked: list[int] = asked, stop: int = stop) -> Any:
            asked.append(1)
            return "stop" if len(asked) == stop else None

        words: dict[str, Any] = {"recipe_digest": "d", "on_metrics": lambda _: None, "control": control}
        if stop:
            with pytest.raises(Interrupted):
                task.fit(splits, tmp_path / place, **words)
        else:
            task.fit(splits, tmp_path / place, **words)
        ended.append({name: weight.detach().clone() for name, weight in task.model.named_parameters()
                      if weight.requires_grad})  # fmt: skip
    whole, half, again = ended
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not all(torch.equal(half[name], again[name]) for name in whole), "the stop came before the end"


def test_a_batch_cut_by_rows_has_the_same_loss(models: Path) -> None:
    task, splits = task_of(recipe_of(models, "idefics3"))
    objective = task.objective()
    batch = vision_batch(list(splits.train)[-4:], task.eyes, pad_id=task.tokenizer.pad_id)
    with torch.no_grad():
        whole = objective(task.model, batch)
        parts = [objective(task.model, piece) for piece in guard.cut(batch, 2)]
    assert len(parts) == 4
    torch.testing.assert_close(whole.total, sum(part.total for part in parts), atol=1e-4, rtol=1e-5)
    assert whole.weight == sum(part.weight for part in parts)


def test_images_never_carry_loss(models: Path) -> None:
    recipe = recipe_of(models, "qwen3_vl", data={"train_on": "all"})
    tokenizer = load_seeing(models / "qwen3_vl")
    rows = load_splits(recipe, tokenizer, base=Path("/"), sequence_length=None).splits.train
    assert any((row.ids == tokenizer.soft_id).any() for row in rows)
    for row in rows:
        assert not row.trained[[index in tokenizer.untrained_ids for index in row.ids.tolist()]].any()
        assert row.trained[[index not in tokenizer.untrained_ids for index in row.ids.tolist()]].all()


def test_fewer_pixels_are_fewer_tokens(models: Path) -> None:
    def tokens(most: int | None) -> int:
        tokenizer = load_seeing(models / "qwen2_5_vl", max_pixels=most)
        recipe = recipe_of(models, "qwen2_5_vl")
        rows = load_splits(recipe, tokenizer, base=Path("/"), sequence_length=None).splits.train
        return sum(int((row.ids == tokenizer.soft_id).sum()) for row in rows)

    assert tokens(512) < tokens(None)
    task, splits = task_of(recipe_of(models, "qwen2_5_vl", vision={"max_pixels": 512}))
    batch = vision_batch(list(splits.train)[:3], task.eyes, pad_id=task.tokenizer.pad_id)
    assert torch.isfinite(task.objective()(task.model, batch).total)
    with pytest.raises(LuthierError, match="every image is 4 tokens"):
        load_seeing(models / "gemma3", max_pixels=512)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"method": {"name": "qlora"}}, "four- and eight-bit bases"),
        ({"data": {"packing": True}}, "rows with images are not packed"),
        ({"data": {"over_length": "truncate"}}, "loses a part of an image"),
        ({"training": {"compile": True}}, "not compiled"),
        ({"training": {"devices": 2}}, "one device"),
        ({"export": {"imatrix": True}}, "taken from rows of text"),
        ({"preference": {}}, "pairs of answers with images"),
    ],
)
def test_what_is_not_done_is_refused_before_anything_loads(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(LuthierError, match=words):
        check_supported(recipe_of(Path("/nowhere"), "gemma3", **sections))


def test_a_model_that_reads_text_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(LuthierError, match="llama reads text alone"):
        load_seeing(tmp_path)


def test_what_is_joined_for_a_tower_stays_where_the_pixels_are() -> None:
    meta = torch.device("meta")
    row = {
        "pixel_values": torch.zeros(1, 1, 3, 8, 8, device=meta),
        "pixel_attention_mask": torch.ones(1, 1, 8, 8, dtype=torch.long, device=meta),
    }
    found = joined([row, {}, row])
    assert {name: value.device for name, value in found.items()} == dict.fromkeys(row, meta)
    assert found["pixel_attention_mask"].shape == (3, 1, 8, 8)
