"""A tiny model and rows for it."""

from dataclasses import dataclass

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 120


@dataclass(frozen=True)
class Micro:
    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    document_ids: torch.Tensor


def micro(rows):
    """Rows of documents, each (ids, labels), padded at the end."""
    width = max(sum(len(ids) for ids, _ in row) for row in rows)
    fields = [torch.zeros(len(rows), width, dtype=torch.long) for _ in range(4)]
    fields[1] -= 100
    for index, row in enumerate(rows):
        start = 0
        for number, (ids, labels) in enumerate(row, 1):
            end = start + len(ids)
            fields[0][index, start:end] = torch.tensor(ids)
            fields[1][index, start:end] = torch.tensor(labels)
            fields[2][index, start:end] = torch.arange(end - start)
            fields[3][index, start:end] = number
            start = end
    return Micro(*fields)


def documents(count, seed=0):
    """Documents of different lengths; the first third of each carries no loss."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        length = int(torch.randint(5, 19, (1,), generator=generator))
        # A pattern that can be learned: each token is one more than that before.
        start = int(torch.randint(3, 60, (1,), generator=generator))
        ids = [start + i for i in range(length)]
        found.append((ids, [-100] * (length // 3) + ids[length // 3 :]))
    return found


class Source:
    """Rows in an order drawn anew for each epoch, so many a step and at once."""

    def __init__(self, rows, batch_size=4, micro_batch_size=2, seed=3):
        self.documents, self.batch_size, self.micro_batch_size, self.seed = (
            rows,
            batch_size,
            micro_batch_size,
            seed,
        )
        self.served = []

    def order(self, epoch):
        generator = torch.Generator().manual_seed(self.seed * 1000 + epoch)
        places = torch.randperm(len(self.documents), generator=generator).tolist()
        return [places[i : i + self.batch_size] for i in range(0, len(places), self.batch_size)]

    def steps(self, epoch):
        return len(self.order(epoch))

    def batches(self, epoch, step):
        chosen = self.order(epoch)[step]
        self.served.append((epoch, step, tuple(chosen)))
        size = self.micro_batch_size
        groups = [chosen[i : i + size] for i in range(0, len(chosen), size)]
        return [micro([[self.documents[place]] for place in group]) for group in groups]

    def rows(self, epoch, step):
        return [f"rows.jsonl:{place + 1}" for place in self.order(epoch)[step]]


def build():
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny():
    return build


@pytest.fixture
def make_source():
    return Source


@pytest.fixture
def make_documents():
    return documents


@pytest.fixture
def make_micro():
    return micro
