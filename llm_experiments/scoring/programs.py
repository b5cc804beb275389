"""Programs that a model wrote, run against tests where they can do no harm: never in this process.

    ran = run_program("def f(x): return x + 1", "assert f(1) == 2", Limits(seconds=5))
    ran.outcome      "passed", "wrong" (a test failed), "error" or "timeout"

A program runs in an interpreter of its own, without site-packages, in a sandbox that leaves it nothing to
read but Python and the libraries of the system, nowhere to write, no network, no environment and few
processes: `sandlock` (Landlock and seccomp; no root), else bubblewrap (namespaces). Where neither works a
program is refused, unless somebody says that it may run without. Wall clock, processor time, memory and
output are bounded in all cases.

What it does not stop: a program that hunts for the harness inside its own process and answers in its name.
What models write for a task does not; whoever reads scores of programs written to deceive should not trust
them.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal, Protocol

Outcome = Literal["passed", "wrong", "error", "timeout"]
OUTCOMES: tuple[Outcome, ...] = ("passed", "wrong", "error", "timeout")
HARNESS = Path(__file__).with_name("harness.py")
#: Most bytes of the answer; a program that writes more is ended.
ANSWER = 2**16
#: Variable of the environment that lets programs run without a sandbox, where there is none.
UNSAFE = "LORA_LIMITS_UNSAFE_CODE"
#: Most processes at a time, threads included.
PROCESSES = 16
#: What Python needs to read to start, beside its own folder.
SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/etc/ld.so.cache")


class SandboxError(RuntimeError):
    """There is no sandbox on this machine; the message says what was tried and what to do."""


@dataclass(frozen=True)
class Limits:
    """Wall clock and processor time in whole seconds, and memory of each process.

    Errors: ValueError on numbers that are no whole ones of at least 1 (memory: of at least 64 megabytes).
    """

    seconds: int = 10
    megabytes: int = 512

    def __post_init__(self) -> None:
        for name, least in (("seconds", 1), ("megabytes", 64)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}")


@dataclass(frozen=True)
class Ran:
    """How a program ended, in what words (those of its error), and after how many seconds."""

    outcome: Outcome
    said: str
    seconds: float


class Running(Protocol):
    """A process with its streams. Closed, it is over, and so is all that it started."""

    stdin: IO[bytes]
    stdout: IO[bytes]

    def close(self) -> None: ...


Start = Callable[[Sequence[str]], Running]
MISSING = (
    "programs that a model wrote are run in a sandbox alone, and none works here: install sandlock (pip "
    "install 'lora-limits[code]'; Linux 6.12 or newer), or bubblewrap and be another user than root; to run "
    "them without one, at your own risk, say `run --unsafe-code` or set LORA_LIMITS_UNSAFE_CODE=1"
)


def run_program(code: str, tests: str, limits: Limits | None = None, *, unsafe: bool = False) -> Ran:
    """Run a program, then its tests in the same names, and say how that ended.

    unsafe: where there is no sandbox, run it without: it can then do whatever you can.
    Errors: SandboxError where there is none and unsafe is not said.
    """
    limits, name = limits or Limits(), sandbox()
    if name is None and not unsafe:
        raise SandboxError(MISSING)
    secret = secrets.token_hex(16)
    job: dict[str, object] = {"code": code, "tests": tests}
    job |= {"seconds": limits.seconds, "megabytes": limits.megabytes}
    # a sandbox ends with its parent by itself, and has numbers of its own for processes
    job |= {"processes": PROCESSES if name == "bubblewrap" else None, "parent": None if name else os.getpid()}
    text = json.dumps(job).encode()
    start = BACKENDS[name] if name else Session
    begun = time.monotonic()
    with closing(start(_python(HARNESS.read_text(encoding="utf-8")))) as running:
        # in a thread of its own: a program that ends early leaves nobody to read
        threading.Thread(
            target=_write, args=(running.stdin, b"%16d" % len(text) + text + secret.encode()), daemon=True
        ).start()
        answer, told, ended = _read(running.stdout, begun + limits.seconds, secret)
    seconds = time.monotonic() - begun
    if answer is not None:
        return Ran(answer[0], answer[1], seconds)
    if ended or told >= ANSWER:
        return Ran("error", "ended before its tests did", seconds)
    return Ran("timeout", f"still running after {limits.seconds} s", seconds)


def unsafe_allowed() -> bool:
    """Whether somebody said that programs may run without a sandbox: UNSAFE in the environment is 1."""
    return os.environ.get(UNSAFE) == "1"


@cache
def sandbox() -> str | None:
    """The name of the sandbox that works here; None where there is none."""
    return next((name for name, start in BACKENDS.items() if _works(start)), None)


def _works(start: Start) -> bool:
    """Whether a sandbox of this kind lets Python start, and keeps it from a file that is not Python's own."""
    secret = secrets.token_hex(16)
    program = f"""
import json
try:
    said = open({str(HARNESS)!r}).read(4)
except OSError:
    said = "shut"
print(json.dumps({{"secret": {secret!r}, "outcome": "passed", "said": said}}), flush=True)
"""
    try:
        with closing(start(_python(program))) as running:
            answer, *_ = _read(running.stdout, time.monotonic() + 10, secret)
            return answer == ("passed", "shut")
    except (ImportError, OSError, RuntimeError):
        return False


def _python(program: str) -> list[str]:
    """A bare interpreter, that of this one without its environment, with a program as text."""
    return [os.path.realpath(sys.executable), "-I", "-S", "-c", program]


def _write(stream: IO[bytes], text: bytes) -> None:
    with suppress(OSError, ValueError):
        while text:
            text = text[stream.write(text) :]
        stream.close()


def _read(stream: IO[bytes], deadline: float, secret: str) -> tuple[tuple[Outcome, str] | None, int, bool]:
    """The answer that knows the secret, how many bytes were read, and whether the stream ended.

    Up to the deadline, and to ANSWER bytes.
    """
    told = b""
    while len(told) < ANSWER and (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([stream], [], [], left)
        if not ready:
            break
        part = stream.read(ANSWER)
        if not part:
            return None, len(told), True
        told += part
        for line in told.splitlines():
            with suppress(ValueError, KeyError, TypeError):
                answer = json.loads(line)
                if answer["secret"] == secret and answer["outcome"] in OUTCOMES:
                    return (answer["outcome"], str(answer["said"])), len(told), False
    return None, len(told), False


class Session:
    """A process that leads a session of its own, in no sandbox; closed, it is killed with all that stayed in
    the session.
    """

    def __init__(self, command: Sequence[str]):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            env={},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self.stdin, self.stdout = self._process.stdin, self._process.stdout

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.stdout.close()


class Bubblewrap(Session):
    """In namespaces of its own, that end with it."""

    def __init__(self, command: Sequence[str]):
        if os.geteuid() == 0:
            raise OSError("namespaces do not bound how many processes root has")
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise OSError("no bwrap")
        binds = [part for path in _readable() for part in ("--ro-bind", path, path)]
        inside = ["--unshare-all", "--die-with-parent", "--new-session", "--clearenv", *binds]
        super().__init__([bwrap, *inside, "--dev", "/dev", "--chdir", "/", *command])


class Sandlock:
    """Behind Landlock and seccomp."""

    def __init__(self, command: Sequence[str]):
        from sandlock import Sandbox
        from sandlock.sandbox import StdioMode

        confined = Sandbox(
            fs_readable=[*_readable(), "/dev/urandom"],
            fs_writable=["/dev/null"],
            clean_env=True,
            max_processes=PROCESSES,
            no_coredump=True,
        )
        self._process = confined.popen(command, StdioMode.PIPED, StdioMode.PIPED, StdioMode.NULL)
        self.stdin, self.stdout = self._process.stdin, self._process.stdout

    def close(self) -> None:
        self._process.kill()
        self._process.wait(timeout=1)
        self.stdout.close()


def _readable() -> list[str]:
    """What Python reads to start."""
    return [path for path in (sys.base_prefix, *SYSTEM) if os.path.exists(path)]


#: By name, the better one first.
BACKENDS: dict[str, Start] = {"sandlock": Sandlock, "bubblewrap": Bubblewrap}
