"""Steps that need no model, and a program that runs them: what the tests kill, starve and run side by side.

    python tests/toy_steps.py DIR LOG [--pause SECONDS] [--steps N] [--payload BYTES] [--lease SECONDS]

LOG gets one line for each computation that begins; it lies outside DIR and is only ever appended to.
"""

import errno
import fcntl
import hashlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from llm_experiments.engine.addresses import Address, Ref
from llm_experiments.engine.context import Context
from llm_experiments.engine.local import run
from llm_experiments.engine.steps import Plan, Step
from llm_experiments.engine.store import Store
from toytransformer.working import ending

FILES = 3


@dataclass(frozen=True)
class Conditions:
    """What does not change results: where begun computations are noted, how long one takes, how big it is."""

    log: Path | None = None
    pause: float = 0.0
    payload: int = 100

    def begin(self, step: Step) -> None:
        if self.log is not None:
            handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(handle, f"{step.address} {os.getpid()}\n".encode())
            os.close(handle)


NOTHING = Conditions()


@dataclass(frozen=True)
class Make(Step):
    """Some files whose content follows from n."""

    kind = "make"

    n: int
    conditions: Conditions = field(default=NOTHING, compare=False)

    @property
    def label(self) -> str:
        return f"make {self.n}"

    def compute(self, context: Context, folder: Path) -> None:
        self.conditions.begin(self)
        (folder / "parts").mkdir()
        for part in range(FILES):
            time.sleep(self.conditions.pause / FILES)
            content = hashlib.sha256(f"{self.n} {part}".encode()).hexdigest()
            repeats = -(-self.conditions.payload // len(content))
            (folder / "parts" / f"{part}.txt").write_text(content * repeats)


@dataclass(frozen=True)
class Ask(Step):
    """Rows that depend on its input and on every file of the steps it needs."""

    kind = "ask"

    of: tuple[Address, ...]
    words: Ref
    n: int
    conditions: Conditions = field(default=NOTHING, compare=False)

    @property
    def label(self) -> str:
        return f"ask {self.n}"

    def compute(self, context: Context, folder: Path) -> None:
        self.conditions.begin(self)
        time.sleep(self.conditions.pause)
        read = (path for need in self.of for path in sorted((context.results(need) / "parts").iterdir()))
        texts = [*context.input(self.words), *(path.read_text() for path in read)]
        digest = hashlib.sha256("".join(texts).encode()).hexdigest()
        rows = ({"n": self.n, "row": row, "text": f"é {digest[: row + 4]}"} for row in range(5))
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


def asking(into: Plan, makes: Sequence[Make], n: int, conditions: Conditions = NOTHING) -> Ask:
    """The step with rows number n, which needs these; they and its input are entered into the plan."""
    words = into.add_input(f"é {n} {word}" for word in range(20))
    return Ask(tuple(into.add(make) for make in makes), words, n, conditions)


def plan(count: int, conditions: Conditions = NOTHING) -> Plan:
    """`count` steps with rows, each needing two of `count` others, which they share."""
    made = Plan()
    made.add_spec(f'{{"toys":{count}}}')
    makes = [Make(n, conditions) for n in range(count)]
    for n in range(count):
        made.want(asking(made, (makes[n], makes[(n + 1) % count]), n, conditions))
    return made


def run_into(
    folder: Path,
    steps: Plan,
    *,
    experiment: str = "toy",
    progress: bool = False,
    lease: float | None = None,
) -> int:
    """What the command line does with a plan; the exit status."""
    store = Store(folder, lease=lease)
    store.add_run({"experiment": experiment}, steps.listed())
    return run(steps, store, Context(store), progress=progress).status


def work(folder: Path, log: Path, count: int, pause: float, lease: float, clock: float | None) -> None:
    """Be a worker, and end with the exit status.

    clock: how far the clocks of this host are off; its file system has no file locks. None: this host.
    """
    if clock is not None:
        as_another_host(clock)
    sys.exit(run_into(folder, plan(count, Conditions(log, pause)), lease=lease))


def as_another_host(clock: float) -> None:
    """From now on this process has no file locks in common with others, and clocks that are off."""

    def missing(handle: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "no locks here")

    fcntl.flock = missing
    here = time.time, time.monotonic
    time.time, time.monotonic = (lambda: here[0]() + clock), (lambda: here[1]() + clock)


#: The calls that change what is on the disk, or make it last.
CALLS = ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir")


def killed_at(folder: Path, steps: Plan, call: int) -> bool:
    """Run in a child, killed (SIGKILL) before its call-th change of the disk; False if it made fewer."""
    if child := os.fork():
        status = os.waitpid(child, 0)[1]
        return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    left = iter(range(call))

    def deadly(function):
        def called(*args, **kwargs):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return called

    for name in CALLS:
        setattr(os, name, deadly(getattr(os, name)))
    os._exit(run_into(folder, steps))


def killed_everywhere(folder: Path, log: Path, count: int) -> None:
    """Kill a run of `count` steps with rows before each change of the disk, each time in a new folder.

    Every one is then resumed. Its folder is folder/<number>; log.<number> says too which steps and inputs
    were there at the kill. Printed is how many there were.
    """
    for number in itertools.count():
        into, noted = folder / str(number), log.with_suffix(f".{number}")
        steps = plan(count, Conditions(noted))
        if not killed_at(into, steps, number):
            break
        there = [(what, entry.name) for what in ("steps", "inputs") for entry in (into / what).glob("*")]
        with noted.open("a") as lines:
            lines.write("".join(f"{what} {name}\n" for what, name in sorted(there)))
        run_into(into, steps)
    print(number)


@click.command()
@click.argument("folder", type=Path)
@click.argument("log", type=Path)
@click.option("--pause", type=float, default=0.0)
@click.option("--steps", "count", type=int, default=6)
@click.option("--payload", type=int, default=100)
@click.option("--lease", type=float)
def main(folder: Path, log: Path, pause: float, count: int, payload: int, lease: float | None) -> None:
    with ending(lambda: "stopped"):
        status = run_into(folder, plan(count, Conditions(log, pause, payload)), progress=True, lease=lease)
    sys.exit(status)


if __name__ == "__main__":
    from toytransformer.command_line import run as command

    command(main, "toy_steps")
