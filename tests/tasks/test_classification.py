"""Classifiers: losses against transformers own heads, saved forms against PEFT, exact resume."""

import copy
import json

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from encoders import label_rows, save_encoder
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import CheckpointError, FileProblem, Interrupted, RecipeError, Unsupported
from luthier.models.classifier import load_classifier
from luthier.schema.classification import DECISION_FILE
from luthier.schema.protocols import Splits
from luthier.schema.recipe import (
    ClassificationChoice,
    DataChoice,
    EvaluationChoice,
    Full,
    Lora,
    ModelChoice,
    Recipe,
    TrainingChoice,
)
from luthier.schema.rows import LabelRow
from luthier.tasks.classification import ClassificationObjective, ClassificationTask, balancing
from luthier.tasks.encoded import Encoded, EncodedRows, encode, pad
from luthier.tasks.labels import SavedClassifier

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
LABELS = ("animal", "colour", "food")
METHODS = [Full(), Lora(rank=4, dropout=0.1)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = {}

    def base(family="bert"):
        if family not in made:
            made[family] = save_encoder(tmp_path_factory.mktemp(family), family)
        return made[family]

    return base


def recipe(directory, *, multi=False, method=None, choice=None, **training):
    values = {
        "epochs": 4, "learning_rate": 4e-3, "batch_size": 8, "micro_batch_size": 4, "sequence_length": 24,
        "evaluate_every": 20, "checkpoint_every": 80, "activation_checkpointing": "none", **training,
    }  # fmt: skip
    return Recipe(
        task="multi-label-classification" if multi else "multi-class-classification",
        model=ModelChoice(id=str(directory), dtype="float32", attention="sdpa"),
        method=method or Full(),
        data=DataChoice(train=("rows.jsonl",), packing=False),
        training=TrainingChoice(**values),
        evaluation=EvaluationChoice(batch_size=8),
        classification=(choice or ClassificationChoice()).model_copy(update={"labels": LABELS}),
    )


def splits(*, multi=False, count=160):
    return Splits(
        label_rows(count, multi=multi, seed=1),
        label_rows(24, multi=multi, seed=2),
        {"test": label_rows(40, multi=multi, seed=3)},
    )


def make(directory, **settings):
    return ClassificationTask(recipe(directory, **settings), directory, load_tokenizer(directory))


def fit(task, rows, folder, seen=None, **more):
    listen = (lambda values: None) if seen is None else seen.append
    return task.fit(rows, folder, recipe_digest="r", on_metrics=listen, **more)


def told(words):
    return lambda done, total: None


def test_a_step_mixes_lengths_and_its_parts_do_not():
    """Lengths that tell labels made steps of few labels; parts of like length change no loss."""
    inputs = [Encoded([1] * size, [0] * size) for size in [4] * 60 + [20] * 60]
    source = EncodedRows(
        inputs, torch.tensor, [f"rows.jsonl:{n}" for n in range(120)], batch_size=40, micro_batch_size=32,
        seed=0, pad_id=0, segments=False,
    )  # fmt: skip
    for step in range(source.steps(0)):
        parts = source.plan(0)[step]
        lengths = [[len(inputs[row]) for row in part] for part in parts]
        assert {size for part in lengths for size in part} == {4, 20}
        assert all(len(part) <= 32 for part in parts)
        padded = sum(batch.input_ids.numel() for batch in source.batches(0, step))
        assert padded < 1.5 * sum(size for part in lengths for size in part)
    rows = sorted(row for step in source.plan(0) for part in step for row in part)
    assert rows == list(range(120))


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_loss_is_that_of_transformers_own_head(bases, family, multi):
    folder = bases(family)
    model, _ = load_classifier(folder, LABELS, multi=multi, dtype="float32", pad_id=0, seed=3)
    rows = label_rows(6, multi=multi)
    inputs = encode([row.text for row in rows], load_tokenizer(folder), most=None)
    if multi:
        labels = torch.tensor([[float(name in row.labels) for name in LABELS] for row in rows])
    else:
        labels = torch.tensor([LABELS.index(row.labels[0]) for row in rows])
    batch = pad(inputs, labels, pad_id=0, segments=family == "bert")
    theirs = model(**batch.inputs, labels=labels)
    found = ClassificationObjective(multi)(model, batch)
    torch.testing.assert_close(found.total / found.weight, theirs.loss, rtol=1e-5, atol=1e-5)
    halves = [
        ClassificationObjective(multi)(model, pad(inputs[part], labels[part], pad_id=0, segments=False))
        for part in (slice(0, 2), slice(2, 6))
    ]
    total = sum(one.total for one in halves) / sum(one.weight for one in halves)
    torch.testing.assert_close(total, theirs.loss, rtol=1e-5, atol=1e-5)


def test_weights_and_smoothing_are_those_of_torch(bases):
    model, _ = load_classifier(bases(), LABELS, multi=False, dtype="float32", pad_id=0, seed=3)
    rows = label_rows(9)
    labels = torch.tensor([LABELS.index(row.labels[0]) for row in rows])
    batch = pad(
        encode([r.text for r in rows], load_tokenizer(bases()), most=None), labels, pad_id=0, segments=True
    )
    weights = balancing([6, 2, 1], 9, "balanced", multi=False)
    assert weights.tolist() == pytest.approx([9 / 18, 9 / 6, 9 / 3])
    found = ClassificationObjective(False, 0.1, weights)(model, batch)
    wanted = torch.nn.functional.cross_entropy(
        model(**batch.inputs).logits, labels, weight=weights, label_smoothing=0.1
    )
    torch.testing.assert_close(found.total / found.weight, wanted)
    assert balancing([2, 1], 4, "sqrt", multi=True).tolist() == pytest.approx([1.0, 3**0.5])
    assert balancing([2, 1], 4, "none", multi=True) is None


@pytest.mark.parametrize("method", METHODS, ids=["full", "lora"])
@pytest.mark.parametrize("family", ["bert", "modernbert", "roberta", "llama"])
def test_it_learns_and_its_saved_forms_answer_alike(bases, tmp_path, family, method):
    folder, rows = bases(family), splits()
    task = make(folder, method=method)
    before = task.judge_base(rows, rows.tests, told=told)["test"]
    assert before.model == "majority"
    assert before.metrics["accuracy"].value < 0.6
    result = fit(task, rows, tmp_path / "run")
    assert result.last_loss < result.first_loss
    after = task.judge_tuned(tmp_path / "run", rows.tests, told=told)["test"]
    assert after.metrics["accuracy"].value > 0.8
    texts = [row.text for row in rows.tests["test"]]
    logits = task._logits(rows.tests["test"])

    again = make(folder, method=method)
    repeated = again.judge_tuned(tmp_path / "run", rows.tests, told=told)["test"]
    assert [row.answer for row in repeated.rows] == [row.answer for row in after.rows]
    if isinstance(method, Lora):
        task.save_adapter(tmp_path / "adapter")
        tokens = AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", padding=True)
        base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, pad_token_id=0)
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        with torch.no_grad():
            found = theirs(**tokens).logits.double().numpy()
        np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)
    task.save_merged(tmp_path / "merged")
    parity = task.check_saved(tmp_path / "merged", rows.tests["test"][:8])
    assert parity.passed, parity.problems
    assert parity.largest_difference < 1e-4
    settings = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert settings["id2label"] == {"0": "animal", "1": "colour", "2": "food"}
    saved = SavedClassifier(tmp_path / "merged")
    np.testing.assert_allclose(saved.logits(texts), logits, rtol=1e-4, atol=1e-4)
    answers = saved.classify(texts)
    assert [one["labels"][0] for one in answers] == [row.answer for row in after.rows]
    assert all(sum(one["probabilities"].values()) == pytest.approx(1) for one in answers)


@pytest.mark.parametrize("method", METHODS, ids=["full", "lora"])
@pytest.mark.parametrize("multi", [False, True])
def test_a_stopped_training_goes_on_exactly(bases, tmp_path, multi, method):
    rows = splits(multi=multi, count=40)
    settings = {"multi": multi, "method": method, "checkpoint_every": 3}
    whole = make(bases(), **settings)
    fit(whole, rows, tmp_path / "whole")
    steps = []

    def stop():
        steps.append(1)
        return "stop" if len(steps) == 7 else None

    cut = make(bases(), **settings)
    with pytest.raises(Interrupted):
        fit(cut, rows, tmp_path / "cut", control=stop)
    fit(make(bases(), **settings), rows, tmp_path / "cut")
    for name in ("checkpoints", "decision.json"):
        assert (tmp_path / "cut" / name).exists()
    test = rows.tests["test"]
    first = make(bases(), **settings)
    first.load_trained(tmp_path / "whole")
    second = make(bases(), **settings)
    second.load_trained(tmp_path / "cut")
    assert (first._logits(test) == second._logits(test)).all()
    assert first.decision == second.decision


def test_many_labels_have_thresholds_of_their_own(bases, tmp_path):
    rows = splits(multi=True, count=160)
    task = make(bases(), multi=True, epochs=8)
    floor = task.judge_base(rows, rows.tests, told=told)["test"]
    fit(task, rows, tmp_path / "run")
    found = task.judge_tuned(tmp_path / "run", rows.tests, told=told)["test"]
    assert found.metrics["label_f1"].value > 0.85 > floor.metrics["label_f1"].value
    assert len(task.decision.thresholds) == 3
    assert task.decision.chosen_on == 24
    assert {row.expected for row in found.rows if not row.gold} <= {"(none)"}
    task.save_merged(tmp_path / "merged")
    settings = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert settings["problem_type"] == "multi_label_classification"
    saved = SavedClassifier(tmp_path / "merged").classify([row.text for row in rows.tests["test"]])
    assert [tuple(sorted(one["labels"])) for one in saved] == [row.given for row in found.rows]
    (tmp_path / "merged" / DECISION_FILE).unlink()
    plain = SavedClassifier(tmp_path / "merged").decision
    assert (plain.kind, plain.thresholds) == ("multi-label", ())


def test_a_fresh_head_begins_at_the_shares_of_the_labels(bases):
    task = make(bases(), multi=True)
    rows = splits(multi=True, count=100)
    task.source(rows)
    shares = [(sum(name in row.labels for row in rows.train) + 1) / 102 for name in LABELS]
    assert torch.sigmoid(task.model.classifier.bias).tolist() == pytest.approx(shares)


def test_what_is_out_of_scope_is_refused(bases, tmp_path):
    def strange(count, seed):
        return [
            LabelRow("zzz qqq " * (1 + i % 3), ("oos",), "rows.jsonl", i, f"o{seed}-{i}", f"o{seed}-{i}")
            for i in range(count)
        ]

    known = splits()
    rows = Splits(
        [*known.train, *strange(4, 1)],
        [*known.validation, *strange(12, 2)],
        {"test": [*known.tests["test"], *strange(10, 3)]},
    )
    task = make(bases(), choice=ClassificationChoice(out_of_scope="oos"))
    floor = task.judge_base(rows, rows.tests, told=told)["test"]
    fit(task, rows, tmp_path / "run")
    assert 0 < task.decision.refuse_below <= 1
    found = task.judge_tuned(tmp_path / "run", rows.tests, told=told)["test"]
    assert found.metrics["out_of_scope_recall"].value > 0.5
    assert floor.metrics["out_of_scope_recall"].value == 0
    assert task.model.config.num_labels == 3
    (tmp_path / "run" / "decision.json").unlink()
    with pytest.raises(CheckpointError, match=r"decision\.json is missing"):
        make(bases(), choice=ClassificationChoice(out_of_scope="oos")).load_trained(tmp_path / "run")


def test_a_classifier_is_its_own_baseline_when_tuned_on(bases, tmp_path):
    rows = splits()
    task = make(bases(), method=Full())
    fit(task, rows, tmp_path / "run")
    first = task.judge_tuned(tmp_path / "run", rows.tests, told=told)["test"]
    task.save_merged(tmp_path / "merged")
    for method in METHODS:
        more = make(tmp_path / "merged", method=method, epochs=1)
        own = more.judge_base(rows, rows.tests, told=told)["test"]
        assert own.model == "base"
        assert own.metrics["accuracy"].value == first.metrics["accuracy"].value
        fit(more, rows, tmp_path / f"more-{method.name}")
        again = more.judge_base(rows, rows.tests, told=told)["test"]
        assert [row.answer for row in again.rows] == [row.answer for row in own.rows]


def test_pairs_are_read_together(bases, tmp_path):
    rows = [LabelRow("the cat", ("animal",), "r", 1, "1", "1", pair="is red")]
    task = make(bases())
    ours = task._logits(rows)
    tokens = AutoTokenizer.from_pretrained(bases())("the cat", "is red", return_tensors="pt")
    assert tokens["token_type_ids"].sum() > 0
    with torch.no_grad():
        theirs = task.model(**tokens).logits.double().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_head_is_the_same_for_the_same_seed(bases):
    def head(seed):
        model, fresh = load_classifier(bases(), LABELS, multi=False, dtype="float32", pad_id=0, seed=seed)
        assert fresh == ("classifier", "bert.pooler.dense")
        return model.classifier.weight

    assert (head(1) == head(1)).all()
    assert (head(1) != head(2)).any()


def test_what_cannot_classify_is_refused(bases, tmp_path):
    with pytest.raises(RecipeError, match=r"classification\.labels has no value"):
        ClassificationTask(
            recipe(bases()).model_copy(update={"classification": None}), bases(), load_tokenizer(bases())
        )
    with pytest.raises(Unsupported, match="no head over labels"):
        SavedClassifier(bases())
    broken = save_encoder(tmp_path / "broken")
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if "layer.1.attention" not in name}
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileProblem, match="not in its files"):
        load_classifier(broken, LABELS, multi=False, dtype="float32", pad_id=0, seed=0)


@pytest.mark.parametrize("multi", [False, True])
def test_a_training_is_a_plain_loop_over_its_batches(bases, tmp_path, multi):
    """transformers' own model, torch's own AdamW, the same batches: every loss and gradient norm is equal."""
    rows = splits(multi=multi, count=40)
    task = make(bases(), multi=multi, schedule="linear", warmup_share=0.2)
    source = task.source(rows)
    steps = [source.batches(0, step) for step in range(source.steps(0))]
    model = copy.deepcopy(task.model).requires_grad_(True)
    for module in (*model.modules(), *task.model.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = task.model.config.attention_probs_dropout_prob = 0.0
    seen = []
    fit(task, rows, tmp_path, seen)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step, told_ in zip(steps, [one for one in seen if one["kind"] == "step"], strict=False):
        count = sum(len(batch.labels) for batch in step)
        found = 0.0
        for batch in step:
            share = len(batch.labels) / count
            loss = model.train()(**batch.inputs, labels=batch.labels).loss * share
            loss.backward()
            found += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = told_["learning_rate"]
        optimizer.step()
        optimizer.zero_grad()
        assert told_["loss"] == pytest.approx(found, abs=1e-5)
        assert told_["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
