"""A lost exchange between processes in words, as torch's back ends put it; nothing else is taken for one."""

import pytest

from luthier.training.touch import lost_touch

LOST = (
    "NCCL communicator was aborted on rank 1.",
    "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=41, OpType=ALLREDUCE, "
    "NumelIn=1048576, Timeout(ms)=600000) ran for 600012 milliseconds before timing out.",
    "NCCL error in: ProcessGroupNCCL.cpp:3356, remote process exited or there was a network error",
    "[gloo/transport/tcp/pair.cc:546] Connection closed by peer [192.0.2.7]:43111",
    "[gloo/transport/tcp/unbound_buffer.cc:136] Timed out waiting 600000ms for recv operation to complete",
    "wait timeout after 600000ms, keys: /default_pg/0//worker_count; Broken pipe",
)


@pytest.mark.parametrize("text", LOST)
def test_a_lost_exchange_has_words_and_a_way_on(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_TIMEOUT", "90")
    said = lost_touch(RuntimeError(f"{text}\nException raised from checkTimeout at torch/csrc/x.cpp:1"), 3)
    assert said is not None
    assert str(said).startswith("process 3 lost touch with the others: ")
    assert "\n" not in str(said)
    assert "for 90 s (LUTHIER_TIMEOUT)" in str(said.hint)
    assert "luthier train --resume" in str(said.hint)


@pytest.mark.parametrize("text", ["mat1 and mat2 shapes cannot be multiplied", "CUDA out of memory. Tried"])
def test_other_errors_are_not_taken_for_one(text: str) -> None:
    assert lost_touch(RuntimeError(text), 0) is None
