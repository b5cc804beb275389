"""Results survive whatever ends a run: kills at any point, a full disk, damage, several processes, errors.

The steps are toys that need no model (toy_steps.py); the processes and their deaths are real.
"""

import contextlib
import errno
import gzip
import itertools
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from rich.console import Console
from toy_steps import FILES, Conditions, Make, asking, plan, run_into

from llm_experiments.engine.addresses import Address, Ref
from llm_experiments.engine.context import Context
from llm_experiments.engine.local import entry, run
from llm_experiments.engine.progress import Estimate, duration
from llm_experiments.engine.sealing import DiskFullError, StoreError, signed
from llm_experiments.engine.steps import Plan, Step
from llm_experiments.engine.store import Store
from toytransformer.compositions import Fact, Merge

HERE = Path(__file__).parent
PROGRAM = HERE / "toy_steps.py"
KILLS = 24


@pytest.fixture
def folder():
    """A folder in memory, where there is such: these tests wait for hundreds of fsyncs."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """rows.jsonl.gz of an uninterrupted run of `count` steps, as a function of count."""
    done = {}

    def of(count: int) -> bytes:
        if count not in done:
            into = tmp_path_factory.mktemp("whole")
            assert run_into(into, plan(count)) == 0
            done[count] = (into / "rows.jsonl.gz").read_bytes()
        return done[count]

    return of


def start(into: Path, log: Path, *options, **popen) -> subprocess.Popen:
    command = [sys.executable, str(PROGRAM), str(into), str(log), *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)


def python(code: str, *arguments, **options) -> subprocess.CompletedProcess:
    """Run a program text in another process, beside this file."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=HERE, **options)


def of(*steps: Step) -> Plan:
    """A plan of these steps."""
    made = Plan()
    made.want(*steps)
    return made


def begun(log: Path) -> list[str]:
    """Addresses of the computations that began, in order."""
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def finished(into: Path) -> set[str]:
    return {entry.name for entry in (into / "steps").glob("*")}


def leftovers(into: Path) -> list[str]:
    return [entry.name for entry in (into / "partial").iterdir()]


def await_(condition, seconds: float = 60.0):
    """Wait until condition() holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


# ---- steps and their keys ----


@dataclass(frozen=True)
class Typed(Step):
    kind = "typed"

    value: object = None
    of: Address | None = None
    title: str = field(default="", compare=False)

    def compute(self, context, folder):
        (folder / "value.txt").write_text("written")


def test_key_is_of_the_content_and_equal_in_every_process():
    code = "from toy_steps import plan; print(*plan(3).steps)"
    told = python(code, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert told.stdout.split() == list(plan(3).steps)


def test_every_part_of_the_content_counts_and_nothing_else():
    step = Typed(1, Make(1).address)
    others = [
        Typed(2, Make(1).address),
        Typed(1, Make(2).address),
        Typed(1),
        Typed("1", Make(1).address),
        Typed(1.5, Make(1).address),
    ]
    assert len({step.key, *(other.key for other in others)}) == 1 + len(others)
    assert replace(step, title="other", of=Make(1, Conditions(pause=1.0)).address).key == step.key

    class Newer(Typed):
        version = 2

    class Otherwise(Typed):
        kind = "otherwise"

    class Silent(Typed):
        def spec(self):
            return {}

    assert len({kind(1).key for kind in (Typed, Newer, Otherwise, Silent)}) == 4
    assert (
        Silent(1, Make(1).address).key == Silent(2, Make(1).address).key != Silent(1, Make(2).address).key
    )  # needs count in any case


def test_specs_hold_what_has_one_json():
    values = (Merge("mean", (1.0, 2.0), {"a": 1}), Fact.of("x", "R1", "y"), {"b": {3, 1}}, range(2), None)
    spec = Typed(values).spec()
    assert json.loads(json.dumps(spec)) == spec
    assert spec["value"][2:] == [{"b": [1, 3]}, [0, 1], None]
    for value in (Path("here"), object(), {1: float("nan")}):
        with pytest.raises(StoreError, match=r"has no fixed JSON|is not JSON"):
            _ = Typed(value).key


def test_fields_may_not_hide_a_steps_own():
    with pytest.raises(TypeError, match="'key'"):

        class Hidden(Step):
            key: str


def test_needs_come_first_and_otherwise_the_order_given():
    steps = plan(4)
    labels = [step.label for step in steps.order()]
    assert labels == ["make 0", "make 1", "ask 0", "make 2", "ask 1", "make 3", "ask 2", "ask 3"]
    steps.wanted = dict.fromkeys(reversed(steps.wanted))
    backwards = [step.label for step in steps.order()]
    assert backwards != labels and sorted(backwards) == sorted(labels)
    steps.include(plan(4))
    assert [step.label for step in steps.order()] == backwards


def test_a_step_may_read_only_what_it_needs(folder):
    @dataclass(frozen=True)
    class Sly(Step):
        kind = "sly"

        def compute(self, context, folder):
            context.results(Make(1).address)

    store = Store(folder)
    summary = run(of(Make(1), Sly()), store, Context(store), progress=False)
    assert summary.status == 1
    assert "without needing it" in summary.failed[Sly().address]


# ---- steps that travel ----


def test_a_step_survives_pickling_whole_and_nothing_else_travels():
    for step in plan(2).order():
        _ = step.address, step.document
        there = pickle.loads(pickle.dumps(step))
        assert there == step and there.address == step.address
        assert len(pickle.dumps(step)) == len(pickle.dumps(replace(step)))  # what was looked at stays


def test_a_step_that_was_unpickled_elsewhere_computes_the_same(folder):
    code = """
import pickle, sys
from llm_experiments.engine.context import Context
from llm_experiments.engine.local import compute
from llm_experiments.engine.store import Store
store = Store(sys.argv[1])
for step in pickle.load(sys.stdin.buffer):
    with store.lock(step.address):
        compute(step, store, Context(store))
"""
    steps, here, there = plan(1), Store(folder / "here"), Store(folder / "there")
    run(steps, here, Context(here), progress=False)
    there.add_inputs(steps.inputs, steps.specs)
    command = [sys.executable, "-c", code, str(there.folder)]
    subprocess.run(command, input=pickle.dumps(steps.order()), cwd=HERE, check=True)
    for address in steps.steps:
        assert here.seal(address)["files"] == there.seal(address)["files"]


def test_a_plan_refuses_what_names_something_unknown_or_holds_it():
    steps = Plan()
    with pytest.raises(StoreError, match=r"names make-.*not planned"):
        steps.add(Typed(1, Make(1).address))
    with pytest.raises(StoreError, match=r"names .*not planned"):
        steps.add(Typed([Ref.of(b"x")]))
    with pytest.raises(StoreError, match="by its address"):
        steps.add(Typed(Make(1)))
    for wrong in ("make", "make-1", "Make-0123456789abcdef", "../make-0123456789abcdef"):
        with pytest.raises(StoreError, match="no address"):
            Address(wrong)
        with pytest.raises(StoreError, match="no reference"):
            Ref(wrong)
    with pytest.raises(StoreError, match="not JSON"):
        steps.add_input([object()])


# ---- killed ----


def test_killed_at_random_points_it_resumes_with_nothing_lost_and_nothing_done_twice(folder, rows):
    count, pause = 6, 0.02
    starting = time.monotonic()
    start(folder / "none", folder / "log", "--steps", 1).communicate()
    starting = time.monotonic() - starting
    rng, killed, number = random.Random(0), 0, 0
    while killed < KILLS:
        into, log = folder / str(number), folder / f"log.{number}"
        number += 1
        while True:
            before = finished(into)
            seen = len(begun(log))
            process = start(into, log, "--pause", pause, "--steps", count)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.3 * starting, starting + 0.3))
            if process.poll() is None and killed < KILLS:
                process.kill()
                killed += 1
            errors = process.communicate()[1]
            assert not before & set(begun(log)[seen:]), "a finished step was computed again"
            if process.returncode != -signal.SIGKILL:
                break
        assert process.returncode == 0, errors
        assert (into / "rows.jsonl.gz").read_bytes() == rows(count)
        assert leftovers(into) == [] and Store(into).problems() == []
    assert killed == KILLS


def test_killed_before_each_change_of_the_disk_it_resumes(folder, rows):
    """Not at random: every point between two writes is a point where a kill could have left something odd."""
    code = "import sys, toy_steps as t; t.killed_everywhere(t.Path(sys.argv[1]), t.Path(sys.argv[2]), 2)"
    told = python(code, folder, folder / "log")
    assert told.returncode == 0, told.stderr
    points = int(told.stdout)
    assert points > 4 * FILES  # each step's files are synced one by one
    kept, inputs = 0, set()
    for number in range(points):
        into, log = folder / str(number), folder / f"log.{number}"
        assert (into / "rows.jsonl.gz").read_bytes() == rows(2), number
        assert leftovers(into) == [] and Store(into).problems() == [], number
        lines = [line.split() for line in log.read_text().splitlines()]
        done = {second for first, second in lines if first == "steps"}
        after = itertools.dropwhile(lambda line: line[0] not in ("steps", "inputs"), lines)
        again = {first for first, _ in after} & done
        inputs.add(sum(first == "inputs" for first, _ in lines))
        assert not again, (number, again)
        kept += len(done)
    assert kept > points  # the later kills left finished steps behind
    assert inputs == {0, 1, 2}  # some died between the inputs


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_stops_at_once_and_leaves_no_half_of_a_step(folder, rows, number):
    into, log = folder / "results", folder / "log"
    run_into(into, of(Make(0, Conditions(log))))
    process = start(into, log, "--pause", 60, "--steps", 2)
    await_(lambda: len(begun(log)) == 2)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert finished(into) == {Make(0).address}
    assert run_into(into, plan(2, Conditions(log))) == 0
    assert begun(log).count(Make(0).address) == 1 and leftovers(into) == []
    assert (into / "rows.jsonl.gz").read_bytes() == rows(2)


# ---- several processes ----


def test_three_processes_share_the_work_and_do_none_of_it_twice(folder, rows):
    into, log = folder / "results", folder / "log"
    processes = [start(into, log, "--pause", 0.05, "--steps", 8) for _ in range(3)]
    for process in processes:
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
    assert sorted(begun(log)) == sorted(plan(8).steps)
    assert len({line.split()[1] for line in log.read_text().splitlines()}) > 1
    assert (into / "rows.jsonl.gz").read_bytes() == rows(8)


def test_what_another_process_finished_in_the_last_moment_is_not_computed_again(folder, rows):
    log = folder / "log"

    class Late(Store):
        def lock(self, name, **options):
            with Store.lock(Store(self.folder), name) as mine:
                for step in plan(2, Conditions(log)).order():
                    if mine and step.address == name and not self.path(name).exists():
                        context = Context(self)
                        with self.computing(step) as into:
                            step.compute(context, into)
            return super().lock(name, **options)

    store = Late(folder / "results")
    summary = run(plan(2, Conditions(log)), store, Context(store), progress=False)
    assert len(summary.finished) == 4 and summary.computed == []
    assert len(begun(log)) == 4


def test_what_a_killed_process_held_is_taken_up_by_the_other(folder, rows):
    into, log = folder / "results", folder / "log"
    first = start(into, log, "--pause", 30, "--steps", 1)
    await_(lambda: begun(log) == [Make(0).address])
    second = start(into, log, "--pause", 0.01, "--steps", 1)
    assert "another process" in second.stderr.readline()
    first.kill()
    first.communicate()
    second.communicate()
    assert second.returncode == 0
    assert begun(log).count(Make(0).address) == 2  # it was never finished before
    assert (into / "rows.jsonl.gz").read_bytes() == rows(1) and leftovers(into) == []


# ---- runs ----


def test_another_run_in_the_same_folder_adds_to_it(folder):
    small, large = plan(2), plan(3)
    for _ in range(2):
        for experiment, steps in (("small", small), ("large", large)):
            store = Store(folder)
            assert store.add_run({"experiment": experiment, "seeds": (0,)}, steps.listed()) == []
            summary = run(steps, store, Context(store), progress=False)
    assert summary.computed == []
    assert [entry["experiment"] for entry in store.runs()] == ["small", "large"]
    told = [json.loads(line)["n"] for line in store.rows()][::5]
    assert told == [0, 1, 1, 2]  # shared steps once; ask 1 of three makes is another one than of two


def test_rows_do_not_depend_on_when_and_how_long(folder, rows):
    run_into(folder, plan(2))
    bytes_before = (folder / "rows.jsonl.gz").read_bytes()
    meta = Store(folder).seal(Make(0).address)["meta"]
    assert meta["seconds"] >= 0 and meta["label"] == "make 0"
    assert bytes_before == rows(2)
    assert bytes_before[4:8] == bytes(4)  # gzip's time stamp
    first = json.loads(gzip.decompress(bytes_before).splitlines()[0])
    assert first["n"] == 0 and first["text"].startswith("é ")


# ---- errors ----


@dataclass(frozen=True)
class Failing(Make):
    """Raises what it is given, unless the file `mended` exists."""

    kind = "failing"

    error: BaseException | None = field(default=None, compare=False)
    mended: Path | None = field(default=None, compare=False)

    def compute(self, context, folder):
        (folder / "half").write_text("half of it")
        if self.mended is None or not self.mended.exists():
            raise self.error
        super().compute(context, folder)


class OutOfMemoryError(RuntimeError):
    """What torch calls it."""


ERRORS = {
    MemoryError(): ("out of memory", "--model or --profile", "run the same command again"),
    OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"): ("out of memory (CUDA", "--four-bit"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"): ("out of memory",),
    StoreError("a message of ours"): ("a message of ours",),
    KeyError("x9"): ("KeyError: 'x9'", "traceback: "),
    ValueError("bare"): ("ValueError: bare", "traceback: "),
    ZeroDivisionError(): ("ZeroDivisionError", "traceback: "),
}


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_step_that_fails_is_named_and_the_others_go_on(folder, capsys, error):
    bad = Failing(1, error=error, mended=folder / "mended")
    store = Store(folder / "results")
    steps = Plan()
    lost, kept = (asking(steps, (Make(0), other), n) for n, other in enumerate((bad, Make(2))))
    steps.want(lost, kept)
    summary = run(steps, store, Context(store))
    assert summary.status == 1
    assert set(summary.finished) == {Make(0).address, Make(2).address, kept.address}
    line = summary.failed[bad.address]
    assert line.startswith("make 1: ") and "\n" not in line
    for words in ERRORS[error]:
        assert words in line
    assert summary.failed[lost.address] == "ask 0: needs make 1, which failed"
    assert line in capsys.readouterr().err
    told = (folder / "results" / "failures" / f"{bad.address}.txt").read_text()
    assert type(error).__name__ in told and "in compute" in told
    assert leftovers(folder / "results") == []

    bad.mended.touch()
    store = Store(folder / "results")
    summary = run(steps, store, Context(store), progress=False)
    assert summary.status == 0 and set(summary.computed) == {bad.address, lost.address}
    assert list((folder / "results" / "failures").iterdir()) == []


def test_a_model_that_cannot_be_loaded_is_tried_once_and_what_needs_none_goes_on(folder):
    @dataclass(frozen=True)
    class Needy(Step):
        kind = "needy"
        n: int

        def compute(self, context, folder):
            assert context.model

    calls = []

    def load():
        calls.append(1)
        raise StoreError("no such model")

    store = Store(folder)
    summary = run(of(Needy(0), Make(0), Needy(1)), store, Context(store, load), progress=False)
    assert len(calls) == 1 and summary.finished == [Make(0).address]
    assert [line.endswith("no such model") for line in summary.failed.values()] == [True, True]
    summary = run(of(Needy(0)), store, Context(store), progress=False)
    assert "give --model" in summary.failed[Needy(0).address]


# ---- no space ----


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int):
    """A file system of that size at folder/disk; skips where none may be mounted."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_the_run_and_keeps_what_is_finished(folder, tmp_path):
    with small_disk(tmp_path, 400) as disk:
        into, log = disk / "results", folder / "log"
        process = start(into, log, "--steps", 4, "--payload", 40_000)
        errors = process.communicate()[1]
        assert process.returncode == 2
        last = errors.strip().splitlines()[-1]
        assert (
            "no space left" in last
            and "finished steps are kept" in last
            and re.search("(make|ask) [0-3]:", last)
        )
        assert "Traceback" not in errors
        before, count = finished(into), len(begun(log))
        assert before and leftovers(into) == []
        subprocess.run(["mount", "-o", "remount,size=8000k", str(disk)], check=True)
        process = start(into, log, "--steps", 4, "--payload", 40_000)
        process.communicate()
        assert process.returncode == 0 and not before & set(begun(log)[count:])
        assert Store(into).problems() == []


def test_a_limit_on_file_sizes_is_told_as_no_space(folder):
    into, log = folder / "results", folder / "log"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start(into, log, "--steps", 2, "--payload", 30_000, preexec_fn=limit)
    errors = process.communicate()[1]
    assert process.returncode == 2 and "no space left" in errors and "File too large" in errors
    assert "Traceback" not in errors and finished(into) == set() == set(leftovers(into))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),  # safetensors
    ],
)
def test_a_steps_own_writer_without_space_ends_the_run_too(folder, error):
    store = Store(folder)
    with pytest.raises(DiskFullError, match="make 1: no space left"):
        run(of(Make(0), Failing(1, error=error), Make(2)), store, Context(store), progress=False)
    assert finished(folder) == {Make(0).address} and leftovers(folder) == []


@pytest.mark.parametrize("call", ["mkdir", "rename", "replace", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_whatever_the_store_cannot_write_is_one_clear_error(folder, monkeypatch, call, number):
    run_into(folder, plan(1))

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    kind, words = {
        errno.ENOSPC: (DiskFullError, "no space left"),
        errno.EROFS: (StoreError, "cannot be written"),
        errno.EIO: (StoreError, "cannot be written"),
    }[number]
    store = Store(folder, write=False)
    with pytest.raises(kind, match=words), store.lock("x"):
        if call == "replace":
            store.assemble()
        with store.computing(Make(7)) as into:
            (into / "file").write_text("x")
    monkeypatch.undo()
    assert finished(folder) == set(plan(1).steps) and leftovers(folder) == []


# ---- folders that are none ----


def test_folders_that_cannot_be_used_are_refused(folder):
    (folder / "file").write_text("x")
    with pytest.raises(StoreError, match=r"is a file: .*folder"):
        Store(folder / "file")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(folder / "file" / "below")
    with pytest.raises(StoreError, match="holds other things \\(file\\)"):
        Store(folder)
    assert [entry.name for entry in folder.iterdir()] == ["file"]
    with pytest.raises(StoreError, match="is not there"):
        Store(folder / "missing", write=False)
    with pytest.raises(StoreError, match="not finished"):
        Store(folder / "new").results(Make(0).address)
    (folder / "hidden").mkdir()
    (folder / "hidden" / ".gitkeep").touch()
    Store(folder / "hidden")  # nothing in the way


def test_a_folder_that_may_not_be_written_is_refused_and_still_read(folder):
    run_into(folder, plan(2))
    code = """
import os, sys
from llm_experiments.engine.store import Store
if os.geteuid() == 0:  # whom no permission binds
    os.setegid(65534), os.seteuid(65534)
store = Store(sys.argv[1], write=sys.argv[2] == "write")
print(sum(1 for _ in store.rows()), store.problems())
"""
    everything = [folder, *folder.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert python(code, folder, "read").stdout == "10 []\n"
        refused = python(code, folder, "write")
        assert refused.returncode and "StoreError" in refused.stderr and "cannot be written" in refused.stderr
    finally:
        for path in everything:
            path.chmod(0o755)


# ---- progress ----


def test_time_left_is_that_of_finished_steps_of_the_same_kind(folder):
    store = Store(folder)
    steps = plan(3).order()
    entries = [entry(step) for step in steps]
    estimate = Estimate(entries, store.seconds)
    assert estimate.left() is None
    seconds = {Make(0).address: 10.0, Make(1).address: 20.0, steps[2].address: 1.0}
    for step in steps[:3]:
        with store.computing(step) as into:
            (into / "file").write_text("x")
        seal = store.seal(step.address)
        seal["meta"]["seconds"] = seconds[step.address]
        (store.path(step.address) / "seal.json").write_bytes(signed(seal))
    for left in (Estimate(entries, store.seconds), estimate):
        if left is estimate:
            for step in steps[:3]:
                left.close(step.address)
        assert left.left() == pytest.approx(15 + 1 + 1)
        assert left.left(running=5.0) == pytest.approx(12)
        assert left.left(running=50.0) == 0
    for step in steps:
        estimate.close(step.address)
    assert estimate.left() == 0


def test_durations_are_told_as_people_do():
    told = [duration(seconds) for seconds in (None, 0, 59.6, 89, 90, 3599, 3600, 7 * 3600 + 125)]
    assert told == ["?", "0 s", "60 s", "89 s", "2 min", "1 h 00 min", "1 h 00 min", "7 h 02 min"]


def test_a_terminal_shows_a_bar_with_the_time_left(folder):
    console = Console(force_terminal=True, width=120, file=(folder / "screen").open("w"))
    store = Store(folder / "results")
    run(plan(2, Conditions(pause=0.05)), store, Context(store), console=console)
    console.file.close()
    shown = (folder / "screen").read_text()
    assert "make 1" in shown and " left" in shown and "4/4" in shown
