"""Code that tries to get out, to stay, or to pass without passing."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest

from luthier.evaluation import sandbox
from luthier.evaluation.sandbox import run_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is run there")

QUICK = 5.0


def test_a_right_answer_passes_and_a_wrong_one_fails() -> None:
    good = "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(x): return x + 1\n"
    assert run_python(good + "assert f(1) == 2\n").passed
    wrong = run_python(good + "assert f(1) == 3\n")
    assert wrong.outcome == "failed"
    assert "AssertionError" in wrong.said


def test_a_syntax_error_is_told() -> None:
    assert "SyntaxError" in run_python("def f(:\n").said


@pytest.mark.parametrize(
    "way_out",
    ["import os; os._exit(0)", "import sys; sys.exit(0)", "raise SystemExit(0)", "exit = quit = None; 1 / 0"],
)
def test_leaving_early_is_no_pass(way_out: str) -> None:
    assert not run_python(way_out + "\nassert False\n").passed


def test_an_endless_loop_ends() -> None:
    began = time.monotonic()
    ran = run_python("while True: pass", seconds=1.0)
    assert ran.outcome in ("timeout", "killed")
    assert time.monotonic() - began < 10


def test_sleep_ends_too() -> None:
    assert run_python("import time; time.sleep(60)", seconds=1.0).outcome == "timeout"


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of address space there")
def test_memory_is_limited() -> None:
    ran = run_python("x = bytearray(4 << 30)", seconds=QUICK)
    assert not ran.passed
    assert "MemoryError" in ran.said


@pytest.mark.parametrize(
    "bomb",
    [
        "import os\nwhile True: os.fork()",
        "import threading\nfor _ in range(1000): threading.Thread(target=input).start()",
        "import subprocess\nsubprocess.run(['/bin/true'])",
        "import os\nos.system('true') == 0 or 1 / 0",
    ],
)
def test_nothing_else_is_started(bomb: str) -> None:
    ran = run_python(bomb, seconds=QUICK)
    assert ran.outcome == "failed"
    assert ran.seconds < QUICK


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are of Linux")
@pytest.mark.parametrize(
    "code",
    [
        "import os; os.fork()",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import threading; threading.Thread(target=print).start()",
        "import socket; socket.socket()",
        "import os; os.kill(1, 9)",
        "print(open('/etc/passwd').read())",
        "open('/tmp/written-by-a-sandbox', 'w')",
        "import os; os.listdir('/')",
    ],
)
def test_the_kernel_refuses_what_gets_past_the_hook(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without = sandbox._PRELUDE.replace("sys.addaudithook(_guard)\n", "")
    assert without != sandbox._PRELUDE
    monkeypatch.setattr(sandbox, "_PRELUDE", without)
    if not run_python("import __main__\nassert __main__._refused and __main__._confined").passed:
        pytest.skip("this kernel has no Landlock or seccomp")
    ran = run_python(code, seconds=QUICK)
    assert ran.outcome == "failed"
    assert "PermissionError" in ran.said or "can't start new thread" in ran.said
    assert "root:" not in ran.said


def test_no_file_outside_is_written_or_read(tmp_path: Path) -> None:
    aim = tmp_path / "aim.txt"
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    tmp_path.chmod(0o777)
    for code in (
        f"open({str(aim)!r}, 'w').write('x')",
        f"import os; os.open({str(aim)!r}, os.O_CREAT | os.O_WRONLY)",
        f"import os; os.symlink({str(aim)!r}, 'link'); open('link', 'w')",
        f"import io; io.FileIO({str(aim)!r}, 'w')",
        f"print(open({str(secret)!r}).read())",
        f"import os; print(os.listdir({str(tmp_path)!r}))",
        f"import os; os.remove({str(secret)!r})",
        f"import pathlib; pathlib.Path({str(aim)!r}).write_text('x')",
    ):
        ran = run_python(code, seconds=QUICK)
        assert ran.outcome == "failed", code
        assert "secret" not in ran.said.replace(str(secret), "")
    assert not aim.exists()
    assert secret.exists()


def test_its_own_folder_can_be_written_and_is_gone_after() -> None:
    ran = run_python("import os\nopen('x', 'w').write('1')\nprint(os.getcwd(), open('x').read())")
    assert ran.passed
    assert not Path(ran.said.split()[0]).exists()
    assert not run_python("open('x', 'wb').write(bytes(8 << 20))").passed


def test_no_socket_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    ran = run_python("import os\nprint(dict(os.environ))\n")
    assert ran.passed
    assert "secret" not in ran.said
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2)"
        assert run_python(code, seconds=QUICK).outcome == "failed"
        raw = f"import _socket\ns = _socket.socket()\ns.connect(('127.0.0.1', {port}))"
        assert run_python(raw, seconds=QUICK).outcome == "failed"


def test_a_flood_of_words_is_cut() -> None:
    ran = run_python("while True: print('x' * 1000)", seconds=2.0)
    assert not ran.passed
    assert len(ran.said) <= 4000
