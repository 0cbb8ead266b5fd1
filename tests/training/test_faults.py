"""Memory that runs out, losses that are no numbers, losses that leap, evaluations that stop helping."""

import json
import math

import pytest
import torch

from luthier.errors import DoesNotFit, Interrupted, TrainingError
from luthier.models.lora import add_lora
from luthier.schema.recipe import Lora, TrainingChoice
from luthier.tasks.causal import CausalObjective, causal_objective
from luthier.training.faults import BAD_BATCHES, leaps
from luthier.training.guard import HostShort, cut, host_place, ran_out
from luthier.training.loop import fit

CHOICE = TrainingChoice(
    epochs=2, learning_rate=3e-3, batch_size=4, micro_batch_size=4, sequence_length=64, evaluate_every=3,
    checkpoint_every=2, activation_checkpointing="none", max_skipped_steps=0,
)  # fmt: skip
FIGURES = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "trained_tokens")


class Narrow(CausalObjective):
    """Runs out of memory above so many tokens, in the forward or in the backward pass."""

    room = 40
    where = "forward"

    def __call__(self, model, batch):
        tokens = int((batch.document_ids > 0).sum())
        if tokens > self.room and self.where == "forward":
            torch.rand(3)  # what was drawn before the end must be drawn again
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB")
        loss = super().__call__(model, batch)
        if tokens > self.room:
            loss.total.register_hook(self.fail)
        return loss

    def fail(self, _gradient):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")


def train(tiny, source, directory, *, objective=CausalObjective, choice=CHOICE, held_out=(), events=None,
          lora=Lora(rank=4), **kwargs):  # fmt: skip  # noqa: B008
    model = tiny()
    if lora is not None:
        add_lora(model, lora, seed=1)
    plain = causal_objective(model)
    events = [] if events is None else events
    result = fit(
        model, objective(plain.head, plain.documents), source, list(held_out), choice=choice, seed=5,
        directory=directory, recipe_digest="r", device=torch.device("cpu"), on_metrics=events.append,
        **kwargs,
    )  # fmt: skip
    return result, model, events


def figures(events):
    return [tuple(event[key] for key in FIGURES) for event in events if event["kind"] == "step"]


def weights_of(model):
    return {
        name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad
    }


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("lora", [Lora(rank=4), None])
def test_a_step_that_does_not_fit_is_done_in_pieces_with_the_same_loss(
    tiny, make_source, make_documents, *, tmp_path, where, lora
):
    rows = make_documents(14)
    narrow = type("Narrow", (Narrow,), {"where": where})
    _, plain, expected = train(tiny, make_source(rows, micro_batch_size=4), tmp_path / "a", lora=lora)
    _, model, events = train(
        tiny, make_source(rows, micro_batch_size=4), tmp_path / "b", objective=narrow, lora=lora
    )
    short = [event for event in events if event["kind"] == "out_of_memory"]
    assert [(event["rows"], event["now"]) for event in short] == [(4, 2)]
    assert short[0]["held"] > 0
    assert "ran out of memory with 4 rows" in next(e["text"] for e in events if e["kind"] == "note")
    assert len(figures(events)) == len(figures(expected)) == 8, "no step is lost"
    for got, wanted in zip(figures(events), figures(expected), strict=True):
        assert got == pytest.approx(wanted, rel=2e-5)
    for name, weight in weights_of(plain).items():
        torch.testing.assert_close(weights_of(model)[name], weight, rtol=2e-3, atol=2e-5)


def test_pieces_stay_small_after_a_resume(tiny, make_source, make_documents, tmp_path):
    rows = make_documents(14)
    _, _, whole = train(tiny, make_source(rows, micro_batch_size=4), tmp_path / "a", objective=Narrow)
    asked = iter([None, None, "stop"])
    with pytest.raises(Interrupted):
        train(tiny, make_source(rows, micro_batch_size=4), tmp_path / "b", objective=Narrow,
              control=lambda: next(asked))  # fmt: skip
    _, _, after = train(
        tiny, make_source(rows, micro_batch_size=4), tmp_path / "b", objective=Narrow, resume=True
    )
    assert not any(event["kind"] == "out_of_memory" for event in after)
    assert figures(after) == figures(whole)[3:], "bit for bit"


class Packed:
    """Two rows of five documents each, one step an epoch."""

    def __init__(self, make_micro, documents):
        self.batch = make_micro([documents[:5], documents[5:10]])

    def steps(self, epoch):
        return 1

    def batches(self, epoch, step):
        return [self.batch]

    def rows(self, epoch, step):
        return ["rows.jsonl:1", "rows.jsonl:2"]


def test_packed_rows_are_cut_between_documents(tiny, make_micro, make_documents, tmp_path):
    source = Packed(make_micro, make_documents(10))
    narrow = type("Narrow", (Narrow,), {"room": 30})
    _, _, expected = train(tiny, source, tmp_path / "a")
    _, _, events = train(tiny, source, tmp_path / "b", objective=narrow)
    short = [event for event in events if event["kind"] == "out_of_memory"]
    assert [(e["rows"], e["now"], e["unit"]) for e in short] == [
        (2, 1, "rows"), (5, 3, "documents"), (3, 2, "documents"),
    ]  # fmt: skip
    for got, wanted in zip(figures(events), figures(expected), strict=True):
        assert got == pytest.approx(wanted, rel=2e-5)


def test_pieces_hold_every_token_once(make_micro, make_documents):
    documents = make_documents(13)
    batch = make_micro([documents[:1], documents[1:6], documents[6:13]])
    for halvings in range(6):
        pieces = cut(batch, halvings)
        kept = [piece.input_ids[piece.document_ids > 0] for piece in pieces]
        assert torch.equal(torch.cat(kept), batch.input_ids[batch.document_ids > 0])
        for piece in pieces:
            # A document begins wherever positions start anew.
            starts = (piece.position_ids == 0) & (piece.document_ids > 0)
            assert int(starts.sum()) == sum(int(row.max()) for row in piece.document_ids)
    assert len(cut(batch, 9)) == 13


def test_one_row_that_does_not_fit_ends_with_what_would(tiny, make_source, make_documents, tmp_path):
    nothing = type("Narrow", (Narrow,), {"room": 2})
    source = make_source(make_documents(8), micro_batch_size=4)
    with pytest.raises(DoesNotFit, match="step 1 runs out of memory with one row") as caught:
        train(tiny, source, tmp_path, objective=nothing)
    assert "activation_checkpointing=full" in str(caught.value.hint)
    assert "training.sequence_length=" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "whether"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", True),
        ("CUDA error: unspecified launch failure", False),
    ],
)
def test_memory_that_ran_out_is_known_by_what_torch_says(text, whether):
    assert ran_out(RuntimeError(text)) is whether


def test_pages_that_cannot_be_locked_are_the_host_s(monkeypatch):
    class OnGpu:
        """As much of a tensor on a GPU as its place on the host asks for."""

        shape, dtype, is_cuda, nbytes = (1024, 1024), torch.float32, True, 4 << 20

    def refused(*_shape, **_kwargs):
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be")

    monkeypatch.setattr(torch, "empty", refused)
    with pytest.raises(HostShort, match="of the host's memory cannot be locked"):
        host_place(OnGpu())


def test_a_row_whose_inputs_the_host_cannot_hold_says_whose_memory_it_is(
    tiny, make_source, make_documents, tmp_path
):
    class Unlocked(CausalObjective):
        def __call__(self, model, batch):
            raise HostShort("4.2 MB of the host's memory cannot be locked")

    source = make_source(make_documents(8), micro_batch_size=4)
    away = CHOICE.model_copy(update={"activation_checkpointing": "offload"})
    events = []
    with pytest.raises(DoesNotFit, match="of the host's memory cannot be locked") as caught:
        train(tiny, source, tmp_path, objective=Unlocked, choice=away, events=events)
    assert "activation_checkpointing=full keeps" in str(caught.value.hint)
    assert "ulimit -l" in str(caught.value.hint)
    assert [event["now"] for event in events if event["kind"] == "out_of_memory"] == [2, 1]


def test_what_may_not_be_cut_is_not_cut(tiny, make_source, make_documents, tmp_path):
    """A batch whose tensors are not rows of tokens: its loss may join its rows."""

    class Joined(make_source):
        def batches(self, epoch, step):
            names = ("input_ids", "labels", "position_ids", "document_ids")
            return [
                type("Odd", (), {name: getattr(batch, name) for name in names})()
                for batch in super().batches(epoch, step)
            ]

    with pytest.raises(DoesNotFit, match="one row"):
        train(tiny, Joined(make_documents(8), micro_batch_size=4), tmp_path, objective=Narrow)


def test_other_errors_are_not_taken_for_a_shortage(tiny, make_source, make_documents, tmp_path):
    class Broken(CausalObjective):
        def __call__(self, model, batch):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        train(tiny, make_source(make_documents(8)), tmp_path, objective=Broken)


class Poisoned(CausalObjective):
    def __call__(self, model, batch):
        loss = super().__call__(model, batch)
        return loss._replace(total=loss.total * float("nan")) if (batch.input_ids == 110).any() else loss


POISON = ([110] * 3, [110] * 3)


def test_not_a_number_ends_the_run_with_its_rows(tiny, make_source, make_documents, tmp_path):
    source = make_source([*make_documents(9), POISON])
    with pytest.raises(TrainingError, match="loss is not a number") as error:
        train(tiny, source, tmp_path, objective=Poisoned)
    (path,) = (tmp_path / BAD_BATCHES).iterdir()
    saved = json.loads(path.read_text())
    _, _, places = source.served[-1]
    assert 9 in places
    assert saved["rows"] == [f"rows.jsonl:{place + 1}" for place in places]
    assert saved["rows"][0] in str(error.value)
    assert [110] * 3 in [row[:3] for part in saved["micro_batches"] for row in part["input_ids"]]
    assert saved["micro_batches"][0].keys() == {"input_ids", "labels", "position_ids", "document_ids"}
    assert str(path) in str(error.value)


def test_a_few_bad_steps_are_left_out_and_said(tiny, make_source, make_documents, tmp_path):
    choice = CHOICE.model_copy(update={"max_skipped_steps": 2})
    source = make_source([*make_documents(9), POISON])
    result, model, events = train(tiny, source, tmp_path, objective=Poisoned, choice=choice)
    skipped = [event for event in events if event["kind"] == "skipped"]
    assert len(skipped) == result.skipped_steps == 2, "once an epoch"
    assert len(figures(events)) == 4
    assert result.steps == 6
    assert all(math.isfinite(event["loss"]) for event in events if event["kind"] == "step")
    assert all(torch.isfinite(weight).all() for weight in weights_of(model).values())
    notes = [event["text"] for event in events if event["kind"] == "note"]
    assert "left out, weights untouched, kept in bad-batches/" in notes[0]
    assert "(1 of 2)" in notes[0]
    # The third is one too many, also for a run that was resumed in between.
    more = make_source([*make_documents(9), POISON])
    longer = choice.model_copy(update={"epochs": 3})
    asked = iter([None, None, None, None, "stop"])
    with pytest.raises(Interrupted):
        train(tiny, more, tmp_path / "b", objective=Poisoned, choice=longer, control=lambda: next(asked))
    with pytest.raises(TrainingError, match="after 2 steps that were left out"):
        train(tiny, more, tmp_path / "b", objective=Poisoned, choice=longer, resume=True)


@pytest.mark.parametrize("shipped", [{}, {"ema": 0.9, "select": "ema"}], ids=str)
def test_a_step_that_was_left_out_changes_nothing(tiny, make_source, make_documents, tmp_path, shipped):
    choice = CHOICE.model_copy(update={"max_skipped_steps": 9, "epochs": 1, **shipped})

    class Always(CausalObjective):
        def __call__(self, model, batch):
            loss = super().__call__(model, batch)
            return loss._replace(total=loss.total * float("inf"))

    before = tiny()
    add_lora(before, Lora(rank=4), seed=1)
    with pytest.raises(TrainingError, match="not one step came to a number"):
        train(tiny, make_source(make_documents(8)), tmp_path, objective=Always, choice=choice)
    seen = []

    class Watching(Always):
        def __call__(self, model, batch):
            seen.append(weights_of(model))
            return super().__call__(model, batch)

    with pytest.raises(TrainingError):
        train(tiny, make_source(make_documents(8)), tmp_path / "b", objective=Watching, choice=choice)
    for name, weight in weights_of(before).items():
        assert torch.equal(seen[-1][name], weight)


class Leaping(CausalObjective):
    """The loss of batches with a certain token is a hundred times as high."""

    def __call__(self, model, batch):
        loss = super().__call__(model, batch)
        return loss._replace(total=loss.total * 100) if (batch.input_ids == 110).any() else loss


@pytest.mark.parametrize("what", ["note", "skip", "off"])
def test_a_leap_is_told_and_its_batch_kept(tiny, make_source, make_documents, tmp_path, what):
    rows = [*make_documents(123), POISON]
    choice = CHOICE.model_copy(update={"epochs": 1, "on_spike": what})
    sources = [make_source(rows, seed=seed) for seed in range(9)]
    places = [next(at for at, chosen in enumerate(s.order(0)) if 123 in chosen) for s in sources]
    # Late enough that the losses before it say what is usual.
    source, place = next((s, place) for s, place in zip(sources, places, strict=True) if place >= 20)
    _, _, events = train(tiny, source, tmp_path, objective=Leaping, choice=choice)
    spikes = [event for event in events if event["kind"] == "spike"]
    if what == "off":
        assert not spikes
        return
    assert [(event["step"], event["skipped"]) for event in spikes] == [(place + 1, what == "skip")]
    saved = json.loads((tmp_path / spikes[0]["path"]).read_text())
    assert "rows.jsonl:124" in saved["rows"]
    assert len(figures(events)) == 31


def test_ordinary_noise_is_no_leap():
    generator = torch.Generator().manual_seed(0)
    noisy = (2 + 0.4 * torch.randn(4000, generator=generator)).tolist()
    assert sum(leaps(loss, noisy[max(0, i - 50) : i]) for i, loss in enumerate(noisy)) == 0
    assert leaps(9.0, noisy[:50])
    assert not leaps(9.0, noisy[:10]), "too early to tell"
    assert not leaps(0.3, [0.001] * 50), "small losses are noisy by nature"


def test_training_ends_when_validation_has_long_stopped_falling(
    tiny, make_source, make_documents, make_micro, tmp_path
):
    ids = [50, 49, 48, 47, 46, 45]
    contrary = [make_micro([[(ids, ids)]])]
    choice = CHOICE.model_copy(
        update={"epochs": 9, "evaluate_every": 1, "learning_rate": 2e-2, "patience": 3, "keep_last": 9}
    )
    result, _, events = train(
        tiny, make_source(make_documents(14)), tmp_path, choice=choice, held_out=contrary, lora=None
    )
    losses = {event["step"]: event["loss"] for event in events if event["kind"] == "validation"}
    best = min(losses, key=losses.get)
    assert result.stopped_early
    assert result.steps == best + 3 < 36
    assert result.best_step == best
    assert any("3 evaluations without a validation loss below" in event.get("text", "") for event in events)
    # Resuming finds it over, and goes no further.
    again, _, after = train(
        tiny,
        make_source(make_documents(14)),
        tmp_path,
        choice=choice,
        held_out=contrary,
        lora=None,
        resume=True,
    )
    assert again.steps == result.steps
    assert [event["kind"] for event in after] == ["resumed"]


def test_layers_that_cannot_be_compiled_run_as_they_are_and_that_is_said(
    tiny, make_source, make_documents, *, tmp_path, monkeypatch
):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none():
        raise InvalidCxxCompiler

    rows = make_documents(6)
    _, plain, _ = train(tiny, make_source(rows), tmp_path / "plain")
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    for keeping, words in (("none", "1.5 times as long"), ("selective", "computed again")):
        choice = CHOICE.model_copy(update={"compile": True, "activation_checkpointing": keeping})
        _, model, events = train(tiny, make_source(rows), tmp_path / keeping, choice=choice)
        (said,) = [event["text"] for event in events if event["kind"] == "note"]
        assert "no C++ compiler" in said
        assert words in said
        for name, weight in weights_of(model).items():
            torch.testing.assert_close(weight, weights_of(plain)[name])
