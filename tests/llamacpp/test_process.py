"""Children end in time, with their words kept."""

import contextlib
import sys
import time

import psutil
import pytest

from luthier.errors import ToolchainError
from luthier.files import replaced
from luthier.llamacpp.process import run_child


def python(code):
    return [sys.executable, "-c", code]


def test_lines_are_told_and_logged(tmp_path):
    lines = []
    run_child(
        python("import sys; print('one'); print('two'); print('bad', file=sys.stderr)"),
        what="a test",
        log=tmp_path / "log",
        timeout=60,
        on_line=lines.append,
    )
    assert lines == ["one", "two"]
    assert {"one", "two", "bad"} == set((tmp_path / "log").read_text().split())


def test_failure_tells_the_last_words(tmp_path):
    with pytest.raises(ToolchainError) as caught:
        run_child(
            python("raise SystemExit('no such tensor')"), what="converting", log=tmp_path / "log", timeout=60
        )
    assert caught.value.message == "converting failed (exit code 1): no such tensor"
    assert caught.value.file == str(tmp_path / "log")
    with pytest.raises(ToolchainError, match="ended by SIGABRT"):
        run_child(python("import os; os.abort()"), what="x", log=tmp_path / "log2", timeout=60)


def test_a_child_that_hangs_is_ended_with_its_own_children(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'], stdout=-3)\n"
        "print(c.pid, flush=True); time.sleep(99)"
    )
    lines, begun = [], time.monotonic()
    with pytest.raises(ToolchainError, match="took longer than 1 s"):
        run_child(python(code), what="x", log=tmp_path / "log", timeout=1, on_line=lines.append)
    pid = int(lines[0])
    assert time.monotonic() - begun < 20
    until = time.monotonic() + 10  # killed, and gone as soon as a busy machine gets to it
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.bin"
    target.write_text("old")
    with contextlib.suppress(RuntimeError), replaced(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    with replaced(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
        assert partial.parent == target.parent
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
