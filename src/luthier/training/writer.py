"""Checkpoints written beside the training: copied at once, brought to the disk by a thread.

A training waits for the copy alone, and for a write that has not ended when the next one begins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.training.guard import host_place


class Writer:
    """One write at a time on a thread of its own, in the order asked for.

    What a write raises is raised by the next call of ``wait`` or ``ended``, once.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a write is under way."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, job: Callable[[], None]) -> None:
        """Begin a write; the one before it must have been waited for."""
        assert self._thread is None, "wait comes first"
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint")
        self._thread.start()

    def ended(self) -> bool:
        """Whether a write has ended since this was last asked; raises what it failed with."""
        if self._thread is None or self._thread.is_alive():
            return False
        return self.wait()

    def wait(self) -> bool:
        """Wait for the write under way; whether there was one. Raises what it failed with."""
        thread, self._thread = self._thread, None
        if thread is None:
            return False
        thread.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return True

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._failure = error


class HostCopies:
    """Copies of tensors in the host's memory, in buffers that are made once and filled again.

    From a GPU into pinned memory, all of them under way before the first is waited for. A tensor that is
    on the host is copied too, where the training goes on changing it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._live: set[int] | None = None

    def copy(self, values: Mapping[str, Any], *, live: Iterable[Tensor] | None = None) -> dict[str, Any]:
        """The nest of mappings and sequences with every tensor copied; they stay until the next call.

        live: those that are changed later, any others on the host being made for this call alone (gathered
        from several processes): these are taken as they are. None: all may be changed. Errors: HostShort.
        """
        self._live = None if live is None else {_place(one) for one in live}
        cuda = [False]
        found = {name: self._copied(str(name), value, cuda) for name, value in values.items()}
        if cuda[0]:
            torch.cuda.synchronize()
        return found

    def _copied(self, path: str, value: Any, cuda: list[bool]) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(path, value.detach(), cuda)
        if isinstance(value, Mapping):
            return {key: self._copied(f"{path}/{key}", item, cuda) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = (self._copied(f"{path}/{place}", item, cuda) for place, item in enumerate(value))
            return type(value)(items)
        return value

    def _tensor(self, path: str, tensor: Tensor, cuda: list[bool]) -> Tensor:
        if self._live is not None and not tensor.is_cuda and _place(tensor) not in self._live:
            return tensor
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = self._buffers[path] = host_place(tensor)
        cuda[0] = cuda[0] or tensor.is_cuda
        buffer.copy_(tensor, non_blocking=True)
        return buffer


def _place(tensor: Tensor) -> int:
    """Where its numbers lie, which tensors that share them have in common."""
    return tensor.untyped_storage().data_ptr()
