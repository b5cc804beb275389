"""What runs inside the sandbox: a program, its tests, and a word on how they ended.

It is never imported for its work: `programs` hands its text to an interpreter of its own. Standard input
holds the length of a job, the job as JSON, and a secret. The secret is read once the tests are over, so that
a program that ends the process, or prints, says nothing about its tests.
"""

from __future__ import annotations

import json
import os


def limit(job: dict) -> None:
    """Bound processor time, memory, files and core dumps; no program can raise what is lowered here."""
    import resource

    bounds = {
        resource.RLIMIT_CPU: job["seconds"] + 1,
        resource.RLIMIT_AS: job["megabytes"] * 2**20,
        resource.RLIMIT_FSIZE: 2**20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if job["processes"]:
        bounds[resource.RLIMIT_NPROC] = job["processes"]
    for kind, most in bounds.items():
        resource.setrlimit(kind, (most, most))


def die_with_parent(parent: int | None) -> None:
    """Ask the kernel to end this process with the one that started it.

    parent: its number, None where another one stands between: it may be dead before the kernel is asked.
    """
    import ctypes
    import signal

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def run(job: dict) -> tuple[str, str]:
    """How the program and its tests ended, and in what words."""
    names: dict = {"__name__": "__main__"}
    try:
        exec(compile(job["code"], "program", "exec"), names)
    except BaseException as error:  # whatever a program raises, SystemExit too
        return "error", words(error)
    try:
        exec(compile(job["tests"], "tests", "exec"), names)
    except AssertionError as error:
        return "wrong", words(error)
    except BaseException as error:
        return "error", words(error)
    return "passed", ""


def words(error: BaseException) -> str:
    """The error's name and what it says, cut short; its text is the program's and may itself fail."""
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return type(error).__name__[:300]


def main() -> None:
    """Read a job, run it, answer with its secret."""

    def read(count: int) -> bytes:
        parts = []
        while count and (part := os.read(0, count)):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    job = json.loads(read(int(read(16))))
    secret, answer, nowhere = os.dup(0), os.dup(1), os.open(os.devnull, os.O_RDWR)
    for place in (0, 1, 2):
        os.dup2(nowhere, place)
    die_with_parent(job["parent"])
    limit(job)
    outcome, said = run(job)
    told = {"secret": os.read(secret, 64).decode(), "outcome": outcome, "said": said}
    os.write(answer, json.dumps(told).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
