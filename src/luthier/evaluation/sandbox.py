"""Runs Python that a model wrote, without letting it at anything: a child process with hard limits.

What holds it, from the outside in: namespaces of its own for network and processes where the system
grants them (``unshare``); Landlock, which leaves no file to be written but those of an empty folder and
none to be read but the interpreter's; seccomp, which refuses processes, threads, programs and sockets;
limits on processor time, memory, open files and file size; no capabilities, nor the rights of root where
Landlock is missing; an environment without anything in it; an audit hook that refuses sockets, other
programs and files outside. The hook is a second line: code that
knows CPython well enough gets around it, the kernel's limits stay. None of this keeps a program that
sets out to from pretending that it passed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Literal

from luthier.errors import Unsupported

Outcome = Literal["passed", "failed", "timeout", "killed"]

SECONDS = 10.0
MEMORY = 1 << 30
FILE_BYTES = 1 << 20
OPEN_FILES = 64
OUTPUT = 4000
"""Characters of what a program printed that are kept."""

_PRELUDE = """
import resource, sys, os
_memory, _seconds, _file, _open, _processes = (int(x) for x in sys.argv[1:6])
_folder, _token_fd, _source_fd = os.path.realpath(sys.argv[6]), int(sys.argv[7]), int(sys.argv[8])
with os.fdopen(_source_fd, "r", encoding="utf-8") as _f:
    _source = _f.read()
_token = os.read(_token_fd, 64)
import linecache, traceback, builtins, io, re, math, collections, itertools, functools, heapq, bisect
import string, random, datetime, operator, copy, typing, decimal, fractions, statistics, cmath, array
import collections.abc, json, textwrap, struct, hashlib, binascii, base64, time, calendar, unicodedata
_roots = tuple({os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__))})


def _confine():
    # Landlock, by the numbers of its system calls: 444 creates, 445 adds a rule, 446 applies.
    import ctypes
    call = ctypes.CDLL(None, use_errno=True).syscall
    version = call(444, None, 0, 1)
    if version < 1:
        return False
    rights = (1 << 13) - 1 | (1 << 13 if version > 1 else 0) | (1 << 14 if version > 2 else 0)
    made = struct.pack("QQ", rights, 3 if version > 3 else 0)[: 16 if version > 3 else 8]
    rules = call(444, made, len(made), 0)
    if rules < 0:
        return False
    reading = 1 | 4 | 8
    for path, allowed in ((_folder, rights), *((root, reading) for root in (
            *_roots, "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo"))):
        if os.path.isdir(path):
            at = os.open(path, os.O_PATH | os.O_CLOEXEC)
            call(445, rules, 1, struct.pack("=Qi", allowed, at), 0)
            os.close(at)
    done = ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0 and call(446, rules, 0) == 0
    os.close(rules)
    return done


def _refuse_calls():
    # Seccomp: processes, threads, other programs, sockets and tracing get EPERM, by number and machine.
    import ctypes
    numbers = {
        "x86_64": (0xC000003E, (41, 53, 56, 57, 58, 59, 62, 101, 322, 425, 435, 165, 272, 310, 311)),
        "aarch64": (0xC00000B7, (198, 199, 220, 221, 129, 117, 281, 425, 435, 40, 97, 270, 271)),
    }.get(os.uname().machine)
    if numbers is None:
        return False
    machine, calls = numbers
    count = len(calls)
    deny = 0x00050000 | 1
    steps = [(0x20, 0, 0, 4), (0x15, 1, 0, machine), (0x06, 0, 0, deny), (0x20, 0, 0, 0)]
    # Numbers of the x32 interface begin at 2**30. Each step that matches jumps to the last one.
    steps += [(0x35, count + 1, 0, 1 << 30)]
    steps += [(0x15, count - place, 0, number) for place, number in enumerate(calls)]
    steps += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, deny)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    head = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None)
    return libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, head, 0, 0) == 0


def _without_rights():
    # Root without capabilities is an owner of files like another; where Landlock keeps none of them, nobody.
    import ctypes
    if os.geteuid() != 0:
        return
    if not _confined:
        os.chown(_folder, 65534, 65534); os.setgroups([]); os.setgid(65534); os.setuid(65534)
        return
    ctypes.CDLL(None).capset(struct.pack("II", 0x20080522, 0), bytes(24))


_confined = sys.platform == "linux" and _confine()
if sys.platform == "linux":
    _without_rights()
_refused = sys.platform == "linux" and _refuse_calls()
for _name, _most in (("RLIMIT_AS", _memory), ("RLIMIT_CPU", _seconds), ("RLIMIT_FSIZE", _file),
                     ("RLIMIT_NOFILE", _open), ("RLIMIT_CORE", 0), ("RLIMIT_NPROC", _processes)):
    try:
        resource.setrlimit(getattr(resource, _name), (_most, _most))
    except (ValueError, OSError):  # macOS refuses a limit of address space
        pass
for _gone in ("ctypes", "_ctypes", "resource"):
    sys.modules.pop(_gone, None)
_banned = ("socket.", "subprocess.", "ctypes.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
           "os.system", "os.kill", "pty.", "os.chmod", "os.chown", "os.link", "os.symlink", "os.setxattr",
           "signal.", "mmap.", "shutil.", "ftplib.", "smtplib.", "http.", "urllib.", "sqlite3.",
           "webbrowser.", "syslog.", "resource.", "os.chdir", "os.truncate", "os.mkdir", "os.rmdir",
           "os.remove", "os.rename", "os.utime", "_thread.start_new_thread", "_thread.start_joinable_thread")
def _guard(event, args, _banned=_banned, _roots=_roots, _folder=_folder,
           _real=os.path.realpath, _sep=os.sep, _isinstance=isinstance, _str=str, _int=int,
           _fsdecode=os.fsdecode, _Error=PermissionError, _flags=os.O_WRONLY | os.O_RDWR | os.O_CREAT):
    if event.startswith(_banned):
        raise _Error("not allowed in the sandbox: " + event)
    if event in ("open", "os.listdir", "os.scandir"):
        path = args[0] if args and args[0] is not None else "."
        if _isinstance(path, _int):
            raise _Error("not allowed in the sandbox: a descriptor")
        where = _real(_fsdecode(path)) + _sep
        flags = args[2] if event == "open" and _isinstance(args[2], _int) else 0
        mode = args[1] if event == "open" and _isinstance(args[1], _str) else ""
        reads = not flags & _flags and not any(one in mode for one in "wax+")
        library = any(where.startswith(root + _sep) for root in _roots)
        if not where.startswith(_folder + _sep) and not (reads and library):
            raise _Error("not allowed in the sandbox: a file outside its folder")
sys.addaudithook(_guard)
_write, _exit = os.write, os._exit


def _run():
    space = {"__name__": "__main__", "__builtins__": builtins}
    try:
        exec(compile(_source, "<answer>", "exec"), space)
    except BaseException as error:
        print("".join(traceback.format_exception_only(type(error), error)).strip(), file=sys.stderr)
        return False
    return True


sys.argv = ["answer"]
_done = _run()
try:
    sys.stdout.flush(); sys.stderr.flush()
finally:
    if _done:
        _write(_token_fd, _token)
    _exit(0 if _done else 1)
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended."""

    outcome: Outcome
    """passed: it came to its end. failed: an error or an early exit. killed: a limit of the kernel."""
    said: str
    """The end of what it printed."""
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every statement of the program ran, the tests at its end included."""
        return self.outcome == "passed"


@lru_cache(maxsize=1)
def namespaces() -> tuple[str, ...]:
    """The words that start a program without network and with processes of its own.

    Empty where this system grants none (no `unshare`, or user namespaces switched off).
    """
    tool = shutil.which("unshare")
    if tool is None or not sys.platform.startswith("linux"):
        return ()
    if os.geteuid() == 0:
        # Without a user namespace: root needs none, and can still become nobody inside.
        attempts = [("--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child"), ("--net",)]
    else:
        user = ("--user", "--map-current-user")
        attempts = [(*user, "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child"), (*user, "--net")]
    for words in attempts:
        tried = subprocess.run(
            [tool, *words, "--", "/bin/true"], capture_output=True, check=False, stdin=subprocess.DEVNULL
        )
        if tried.returncode == 0:
            return (tool, *words, "--")
    return ()


def how_held() -> str:
    """What keeps a program in here, in words."""
    if namespaces():
        return "namespaces without network, Landlock, seccomp, limits of the kernel, audit hook"
    return "Landlock and seccomp where the kernel has them, its limits, audit hook; no namespaces here"


def run_python(source: str, *, seconds: float = SECONDS, memory: int = MEMORY) -> Ran:
    """Run a program to its end, or to a limit.

    seconds: wall-clock time, and processor time besides. memory: bytes of address space. It may
    start no process and no thread. Passed is said by the program's own process after the last
    statement: an early ``exit(0)`` or ``os._exit(0)`` counts as failed. Errors: Unsupported where the
    system has no such limits.
    """
    if sys.platform == "win32":
        raise Unsupported(
            "code of a model is not run on Windows: it has no limits that would hold it",
            hint="run it on Linux, in WSL or in a container",
        )
    folder = Path(tempfile.mkdtemp(prefix="luthier-sandbox-"))
    began = time.monotonic()
    try:
        return _run(source, folder, seconds, memory, began)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(source: str, folder: Path, seconds: float, memory: int, began: float) -> Ran:
    token = secrets.token_hex(16).encode()
    # Source and token go through pipes: nothing of them stands in a file that a program could look for.
    ours, theirs = _pair()
    reading = _filled(source)
    os.write(ours, token)
    limits = [memory, max(1, int(seconds) + 1), FILE_BYTES, OPEN_FILES, 0]
    words = [
        *namespaces(),
        sys.executable,
        "-I",
        "-S",
        "-B",
        "-c",
        _PRELUDE,
        *map(str, limits),
        str(folder),
        str(theirs),
        str(reading),
    ]
    out = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    child = None
    try:
        child = subprocess.Popen(
            words,
            cwd=folder,
            env={"HOME": str(folder), "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs, reading),
            start_new_session=True,
        )
        os.close(theirs)
        os.close(reading)
        theirs = reading = -1
        timed_out = False
        try:
            child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        _end(child)
        said = _said(out)
        took = time.monotonic() - began
        if timed_out:
            return Ran("timeout", said, took)
        os.set_blocking(ours, False)
        try:
            answered = os.read(ours, 64)
        except (BlockingIOError, ConnectionError):
            answered = b""
        if child.returncode == 0 and answered == token:
            return Ran("passed", said, took)
        killed = child.returncode < 0 or child.returncode >= 128
        return Ran("killed" if killed else "failed", said, took)
    finally:
        if child is not None:
            _end(child)
        for descriptor in (ours, theirs, reading):
            if descriptor >= 0:
                os.close(descriptor)
        out.close()


def _pair() -> tuple[int, int]:
    import socket

    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def _filled(source: str) -> int:
    """A descriptor that reads the source from its beginning."""
    with tempfile.TemporaryFile() as file:
        file.write(source.encode("utf-8", "replace"))
        file.flush()
        descriptor = os.dup(file.fileno())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the program and whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=10)


def _said(out: IO[bytes]) -> str:
    size = out.seek(0, os.SEEK_END)
    out.seek(max(0, size - OUTPUT))
    return out.read().decode("utf-8", "replace").strip()
