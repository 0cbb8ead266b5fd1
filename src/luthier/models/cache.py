"""A key-value cache with room to grow: a step writes in place instead of copying all that came before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer in buffers of fixed capacity.

    keys, values: [rows, kv_heads, length so far, head_dim], views into the buffers.
    """

    def __init__(self, capacity: int, rows: int) -> None:
        super().__init__()
        self.capacity, self.rows, self.length = capacity, rows, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        shape = (self.rows, key_states.shape[1], self.capacity)
        self.key_buffer = key_states.new_empty(*shape, key_states.shape[3])
        self.value_buffer = value_states.new_empty(*shape, value_states.shape[3])
        self.keys, self.values = self.key_buffer[:, :, :0], self.value_buffer[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append; one row of states is written to all rows (a prefix that they share)."""
        del args, kwargs
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        assert end <= self.capacity
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        if key_states.shape[0] != self.key_buffer.shape[0]:
            return self.keys[: key_states.shape[0]], self.values[: key_states.shape[0]]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def keep(self, rows: Tensor) -> None:
        """Let all other rows go."""
        self.key_buffer, self.value_buffer = self.key_buffer[rows], self.value_buffer[rows]
        self.keys = self.key_buffer[:, :, : self.length]
        self.values = self.value_buffer[:, :, : self.length]


def roomy_cache(layers: int, *, rows: int, capacity: int) -> Any:
    """A cache for models whose layers all attend to everything before them."""
    return Cache(layers=[RoomyLayer(capacity, rows) for _ in range(layers)])


def keep_rows(cache: Any, rows: Tensor) -> None:
    """Let all but these rows of a cache go."""
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.keep(rows)
        else:
            cache.batch_select_indices(rows)
            return


def shared_prefix(prompts: list[list[int]]) -> int:
    """Tokens that all prompts begin with, at least one being left to each."""
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)
    shortest = min(len(prompt) for prompt in prompts)
    same = 0
    while same < shortest - 1 and low[same] == high[same]:
        same += 1
    return same


def left_padded(rows: list[list[int]], fill: int) -> tuple[Tensor, Tensor]:
    """ids and mask: [rows, longest], padding on the left."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[fill] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
