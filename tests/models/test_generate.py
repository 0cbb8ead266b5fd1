"""Batched greedy answers against transformers' own generate, one prompt at a time."""

import numpy as np
import pytest
import torch

from luthier.errors import DataError
from luthier.models.generate import TorchGenerator, clear_lead


class Words:
    """A tokenizer whose text is its ids."""

    eos_ids = frozenset({2})
    pad_id = 0

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode(self, ids, *, skip_special=True):
        return " ".join(str(i) for i in ids)

    def render(self, messages, *, tools=None, add_generation_prompt=False):
        return " ".join(message["content"] for message in messages)


def prompts(shared: int, count: int = 9):
    generator = torch.Generator().manual_seed(7)
    start = torch.randint(3, 160, (shared,), generator=generator).tolist()
    lengths = torch.randint(1, 14, (count,), generator=generator).tolist()
    return [start + torch.randint(3, 160, (n,), generator=generator).tolist() for n in lengths]


def reference(model, prompt, most, eos):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=eos,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    stopped = out[-1] in eos
    return tuple(out[:-1] if stopped else out), stopped


def generator(model, **kwargs):
    return TorchGenerator(model, Words(), label="base", weights_digest="x", **kwargs)


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("size", [1, 4, 9])
def test_equals_generate_one_at_a_time(tiny, family, shared, size):
    model = tiny(family)
    given = prompts(shared)
    # An end token that really comes, at different places, so that rows leave the batch.
    free = [reference(model, prompt, 12, [2])[0] for prompt in given]
    seen = [token for answer in free for token in answer[2:9]]
    eos = max(set(seen), key=seen.count)
    expected = [reference(model, prompt, 12, [eos]) for prompt in given]
    assert sum(stopped for _, stopped in expected) > 0
    words = Words()
    words.eos_ids = frozenset({eos})
    told = []
    subject = TorchGenerator(model, words, label="base", weights_digest="x", batch_size=size)
    found = subject.generate(
        [[{"role": "user", "content": words.decode(prompt)}] for prompt in given],
        max_new_tokens=12,
        progress=lambda done, total: told.append((done, total)),
    )
    assert [(answer.token_ids, answer.stopped) for answer in found] == expected
    assert told[-1] == (9, 9)
    assert len(told) == -(-9 // size)


def test_gaps_say_how_clear_each_choice_was(tiny):
    model = tiny("llama")
    subject = generator(model, batch_size=4)
    given = prompts(0, 5)
    for prompt, answer in zip(given, subject.greedy(given, max_new_tokens=6, gaps=True), strict=True):
        assert len(answer.gaps) == len(answer.ids) + answer.stopped
        for place, gap in enumerate(answer.gaps):
            seen = [*prompt, *answer.ids[:place]]
            with torch.no_grad():
                best = model(torch.tensor([seen])).logits[0, -1].log_softmax(-1).topk(2).values
            assert gap == pytest.approx((best[0] - best[1]).item(), abs=1e-4)


def test_log_probabilities(tiny, family):
    model = tiny(family)
    subject = generator(model, batch_size=2)
    given = prompts(10, 5)
    with torch.no_grad():
        expected = [model(torch.tensor([p])).logits[0].float().log_softmax(-1).numpy() for p in given]
    found = subject.next_log_probs(given)
    np.testing.assert_allclose(found, np.stack([rows[-1] for rows in expected]), atol=2e-5)
    places = [0, 4, 9]
    np.testing.assert_allclose(subject.log_probs(given[0], places), expected[0][places], atol=2e-5)
    top = subject.top_log_probs(given, 3)
    assert [max(row, key=row.get) for row in top] == [int(rows[-1].argmax()) for rows in expected]
    assert all(len(row) == 3 for row in top)


def test_the_context_ends_an_answer(tiny):
    model = tiny("llama")
    words = Words()
    words.eos_ids = frozenset({-1})
    subject = TorchGenerator(model, words, label="base", weights_digest="x")
    (answer,) = subject.greedy([[5] * 125], max_new_tokens=50)
    assert len(answer.ids) == 3
    assert not answer.stopped
    with pytest.raises(DataError, match="prompt 2 has 128 tokens"):
        subject.greedy([[5], [5] * 128], max_new_tokens=1)
    with pytest.raises(DataError, match="empty"):
        subject.greedy([[]], max_new_tokens=1)


def test_a_lead_of_two_steps_of_bf16_is_a_tie():
    logits = torch.tensor([[28.5, 28.25], [28.5, 28.0], [3.0, 2.0]])
    assert clear_lead(logits, torch.bfloat16).tolist() == pytest.approx([0.0, 0.25, 1 - 2**-5])
    assert clear_lead(logits, torch.float32).tolist() == pytest.approx([0.25, 0.5, 1.0], abs=1e-4)
