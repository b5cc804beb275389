"""The store survives any file: whatever lies in its folder is named, set aside, and the run goes on.

The steps are toys that need no model (toy_steps.py).
"""

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import signal
import socket
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from toy_steps import Conditions, Make, plan, run_into

from llm_experiments.commands.runs import status
from llm_experiments.engine.addresses import Ref
from llm_experiments.engine.schedule import Schedule
from llm_experiments.engine.sealing import StoreError, signed
from llm_experiments.engine.steps import Plan, Step
from llm_experiments.engine.store import Store
from results import files
from results.rows import CellInfo, Item, Row, items_hash
from toytransformer.compositions import catalogue

DEEP = "[" * 100_000


@pytest.fixture
def folder():
    """A folder in memory, where there is such: these tests wait for hundreds of fsyncs."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def soon():
    """A test that waits for a pipe fails after a minute."""

    def late(number, frame):
        raise TimeoutError("something waits for a file")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@cache
def whole() -> bytes:
    """rows.jsonl.gz of an undisturbed run of plan(2)."""
    with tempfile.TemporaryDirectory() as name:
        assert run_into(Path(name), plan(2)) == 0
        return (Path(name) / "rows.jsonl.gz").read_bytes()


def begun(log: Path) -> list[str]:
    """Addresses of the computations that began, in order."""
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def problems(into: Path) -> list[str]:
    return [str(problem) for problem in Store(into, write=False).problems()]


# ---- damaged steps ----


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def exchange(step: Path) -> None:
    """Another step's sound folder under this one's name."""
    other = next(
        entry for entry in step.parent.iterdir() if entry.name.split("-")[0] == "make" and entry != step
    )
    shutil.rmtree(step)
    shutil.copytree(other, step)


def resealed(step: Path, **changes) -> None:
    """The step under a seal that is whole, but says something else."""
    seal = json.loads((step / "seal.json").read_text())
    del seal["sha256"]
    (step / "seal.json").write_bytes(signed({**seal, **changes}))


def piped(path: Path) -> None:
    """A pipe that nobody writes to, in the place of a file."""
    path.unlink()
    os.mkfifo(path)


def foldered(path: Path) -> None:
    """A folder in the place of a file."""
    path.unlink()
    path.mkdir()


def linked(path: Path) -> None:
    """A link in the place of what is there, to the very same."""
    elsewhere = path.parent.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def rewritten(step: Path, file: str, text: str) -> None:
    """Another content of a file, under a seal that fits."""
    (step / file).write_text(text)
    sealed = json.loads((step / "seal.json").read_text())["files"]
    sealed[file] = {"size": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    resealed(step, files=sealed)


DAMAGES = {
    "a byte of a file": lambda step: flip(step / "parts" / "1.txt"),
    "a file cut short": lambda step: os.truncate(step / "parts" / "1.txt", 10),
    "a file emptied": lambda step: os.truncate(step / "parts" / "1.txt", 0),
    "a file gone": lambda step: (step / "parts" / "1.txt").unlink(),
    "a link for a file": lambda step: linked(step / "spec.json"),
    "a pipe for a file": lambda step: piped(step / "parts" / "1.txt"),
    "a folder for a file": lambda step: (
        (step / "parts" / "1.txt").unlink(),
        (step / "parts" / "1.txt").mkdir(),
    ),
    "a link for the folder of the files": lambda step: linked(step / "parts"),
    "a byte of the description": lambda step: flip(step / "spec.json"),
    "a byte of the seal": lambda step: flip(step / "seal.json"),
    "the seal cut short": lambda step: os.truncate(step / "seal.json", 100),
    "the seal gone": lambda step: (step / "seal.json").unlink(),
    "a pipe for the seal": lambda step: piped(step / "seal.json"),
    "a folder for the seal": lambda step: foldered(step / "seal.json"),
    "a link for the seal": lambda step: linked(step / "seal.json"),
    "a seal without end": lambda step: (step / "seal.json").write_text(DEEP),
    "a description without end": lambda step: rewritten(step, "spec.json", DEEP),
    "a description that is a list": lambda step: rewritten(step, "spec.json", "[]"),
    "another seal": lambda step: shutil.copy(step.parent.parent / "run.json", step / "seal.json"),
    "another step": exchange,
    "another step under a fitting seal": lambda step: (exchange(step), resealed(step, name=step.name)),
    "a seal for another step": lambda step: resealed(step, name=Make(0).address),
    "an empty folder": lambda step: (shutil.rmtree(step), step.mkdir()),
    "a file for the folder": lambda step: (shutil.rmtree(step), step.write_text("not a step")),
    "a pipe for the folder": lambda step: (shutil.rmtree(step), os.mkfifo(step)),
    "a dead link for the folder": lambda step: (
        shutil.rmtree(step),
        step.symlink_to(step.parent / "nowhere"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_set_aside_and_computed_again(folder, capsys, damage):
    into, log = folder / "results", folder / "log"
    conditions, victim = Conditions(log), Make(1).address
    run_into(into, plan(2, conditions))
    DAMAGES[damage](into / "steps" / victim)
    found = [str(problem) for problem in Store(into, write=False).problems() if problem.fatal]
    assert found and all(f"steps/{victim}" in line for line in found)
    with pytest.raises(StoreError):
        Store(into, write=False).results(victim)
    capsys.readouterr()
    assert run_into(into, plan(2, conditions), progress=True) == 0
    assert victim in capsys.readouterr().err
    assert begun(log).count(victim) == 2 and len(begun(log)) == 5  # the others were not
    assert [name.startswith(victim) for name in Store(into).rejected()] == [True]
    assert (into / "rows.jsonl.gz").read_bytes() == whole()
    if (into / "elsewhere").is_dir():
        shutil.rmtree(into / "elsewhere")
    (into / "elsewhere").unlink(missing_ok=True)
    assert Store(into).problems() == []


GOOD = {"size": 1, "sha256": "0" * 64}
SEALS = {
    "a list of files": {"files": ["parts/1.txt"]},
    "a file without a size": {"files": {"spec.json": {"sha256": "0"}}},
    "a size in words": {"files": {"spec.json": {**GOOD, "size": "1"}}},
    "a size that is true": {"files": {"spec.json": {**GOOD, "size": True}}},
    "more of a file": {"files": {"spec.json": {**GOOD, "more": 1}}},
    "a digest that is a number": {"files": {"spec.json": {**GOOD, "sha256": 0}}},
    "a name that is none": {"name": 3},
    "no meta": {"meta": None},
    "meta in meta": {"meta": {"label": []}},
    "no files at all": {"files": {}},
    **{
        f"a file at {path!r}": {"files": {path: GOOD}}
        for path in (
            "../outside",
            "/etc/passwd",
            "parts/../../outside",
            "",
            ".",
            "a//b",
            "./a",
            "seal.json",
            "a\0b",
        )
    },
}


@pytest.mark.parametrize("change", SEALS)
def test_a_seal_that_is_signed_and_says_what_no_seal_says_is_not_trusted(folder, change):
    into, victim = folder / "results", Make(1).address
    run_into(into, plan(2))
    (into / "outside").write_text("x")
    resealed(into / "steps" / victim, **SEALS[change])
    told = [line for line in problems(into) if not line.startswith("outside")]
    assert told and all(line.startswith(f"steps/{victim}") for line in told)
    assert run_into(into, plan(2)) == 0
    (into / "outside").unlink()
    assert (into / "rows.jsonl.gz").read_bytes() == whole() and problems(into) == []


def test_a_file_that_the_seal_names_outside_its_folder_is_never_read(folder):
    """Size and digest fit, so only where it lies can tell."""
    run_into(folder / "results", plan(2))
    step, text = folder / "results" / "steps" / Make(1).address, "outside"
    (folder / "outside").write_text(text)
    sealed = json.loads((step / "seal.json").read_text())["files"]
    digest = hashlib.sha256(text.encode()).hexdigest()
    resealed(step, files={**sealed, "../../../outside": {"size": len(text), "sha256": digest}})
    assert any("no file in its folder" in line for line in problems(folder / "results"))


def test_foreign_things_are_named_and_never_read(folder):
    into, log = folder / "results", folder / "log"
    run_into(into, plan(2, Conditions(log)))
    kept, row = into / "steps" / next(iter(plan(2).wanted)), '{"n": 99}\n'
    foreign = {
        "notes.txt": "mine",
        "steps/README": "mine",
        "steps/ask-0123456789abcdef/rows.jsonl": row,
        "steps/other/rows.jsonl": row,
        f"steps/{kept.name}/parts/rows.jsonl": row,
        f"steps/{kept.name}/more.jsonl": row,
        "partial/mine": "mine",
    }
    for name, text in foreign.items():
        (into / name).parent.mkdir(exist_ok=True)
        (into / name).write_text(text)
    (into / "steps" / kept.name / "empty").mkdir()
    named = {problem.path for problem in Store(into, write=False).problems()}
    for path in ("notes.txt", "steps/README", "steps/other", "partial/mine", f"steps/{kept.name}/more.jsonl"):
        assert path in named
    assert any(path.startswith("steps/ask-0123456789abcdef") for path in named)
    assert run_into(into, plan(2, Conditions(log))) == 0
    assert len(begun(log)) == 4  # a sound step only loses what is foreign in it
    assert sorted(entry.name for entry in kept.iterdir()) == ["rows.jsonl", "seal.json", "spec.json"]
    assert (into / "rows.jsonl.gz").read_bytes() == whole()
    assert (into / "notes.txt").read_text() == "mine" and (into / "partial" / "mine").exists()
    assert [entry.read_text() for entry in (into / "rejected").glob("*.more.jsonl.*")] == [row]


def test_damaged_lists_of_runs_and_rows_are_named_and_written_again(folder):
    run_into(folder, plan(2))
    for damage in (flip, lambda path: os.truncate(path, 20), lambda path: path.write_bytes(b"")):
        damage(folder / "rows.jsonl.gz")
        assert [problem.path for problem in Store(folder, write=False).problems()] == ["rows.jsonl.gz"]
        damage(folder / "run.json")
        named = {problem.path for problem in Store(folder, write=False).problems()}
        assert "run.json" in named
        assert [problem.path for problem in Store(folder).add_run({"experiment": "toy"}, [])] == ["run.json"]
        assert run_into(folder, plan(2)) == 0
        assert (folder / "rows.jsonl.gz").read_bytes() == whole()
        assert Store(folder).problems() == []
    shutil.copy(folder / "run.json", folder / "rows.jsonl.gz")
    assert [problem.path for problem in Store(folder).problems()] == ["rows.jsonl.gz"]
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"n": 99}\n'))
    assert "not what the finished steps hold" in str(Store(folder).problems()[0])


# ---- anything in the place of anything ----


def the(into: Path, pattern: str) -> Path:
    """The first file of that name."""
    return sorted(into.glob(pattern))[0]


PLACES = {
    "run.json": lambda into: into / "run.json",
    "rows": lambda into: into / "rows.jsonl.gz",
    "an input": lambda into: the(into, "inputs/*.jsonl"),
    "a spec": lambda into: the(into, "specs/*.json"),
    "a lock": lambda into: into / "locks" / f"{Make(1).address}.lock",
    "the lock of the rows": lambda into: into / "locks" / "rows.jsonl.gz.lock",
    "a failure": lambda into: into / "failures" / f"{Make(1).address}.txt",
    "steps": lambda into: into / "steps",
    "inputs": lambda into: into / "inputs",
    "locks": lambda into: into / "locks",
    "rejected": lambda into: into / "rejected",
    "partial": lambda into: into / "partial",
}


def put_socket(path: Path) -> None:
    # The name of a socket is short. It may be taken already: then this raises, in the folder where it began.
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


def put_folder(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("x")


THINGS = {
    "nothing": lambda path: None,
    "an empty file": lambda path: path.touch(),
    "noise": lambda path: path.write_bytes(bytes(range(256))),
    "JSON without end": lambda path: path.write_text(DEEP),
    "a number": lambda path: path.write_text("1"),
    "JSON that is no UTF-8": lambda path: path.write_bytes(b'"\xff"'),
    "zipped noise": lambda path: path.write_bytes(gzip.compress(b"noise")),
    "a folder": put_folder,
    "a pipe": os.mkfifo,
    "a socket": put_socket,
    "a dead link": lambda path: path.symlink_to("nowhere"),
    "a link in a circle": lambda path: path.symlink_to(path.name),
    "a link to a file": lambda path: path.symlink_to("/proc/self/status"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
}
#: A file or a folder of the same kind is what belongs there.
FINE = {("a lock", "an empty file"), ("the lock of the rows", "an empty file")}
FOLDERS = ("steps", "inputs", "locks", "rejected", "partial")


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("place", PLACES)
def test_anything_may_stand_in_the_place_of_anything(folder, place, thing):
    into, log = folder / "results", folder / "log"
    run_into(into, plan(2, Conditions(log)))
    path = PLACES[place](into)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    THINGS[thing](path)
    told = problems(into)
    if place in ("run.json", "rows", "an input", "a spec") and thing != "nothing":
        assert any(line.startswith(str(path.relative_to(into))) for line in told)
    if place == "rows":
        assert any(line.startswith("rows.jsonl.gz: ") for line in told)
    if place in FOLDERS and thing not in ("nothing", "a folder"):
        assert any(line.startswith(f"{place}: is not a folder") for line in told)
    assert run_into(into, plan(2, Conditions(log))) == 0
    assert (into / "rows.jsonl.gz").read_bytes() == whole()
    assert len(begun(log)) == (8 if place == "steps" else 4)
    for entry in into.iterdir():
        if entry.name.startswith("rejected."):
            entry.unlink()
    for name in ("steps/file", "partial/file", "inputs/file"):
        (into / name).unlink(missing_ok=True)
    assert problems(into) == []


#: What no run list of ours says, though it is signed.
RUNS = [
    {},
    3,
    [3],
    [{"experiment": "toy"}],
    [{"experiment": 1, "steps": []}],
    [{"experiment": "toy", "steps": {}}],
    [{"experiment": "toy", "steps": [3]}],
    [{"experiment": "toy", "steps": [{"address": "../../etc", "label": "x"}]}],
    [{"experiment": "toy", "steps": [{"address": Make(0).address}]}],
    [{"experiment": "toy", "seeds": 3, "steps": []}],
    [{"experiment": "toy", "seeds": ["0"], "steps": []}],
    [{"experiment": "toy", "model": [], "steps": []}],
]


@pytest.mark.parametrize("runs", RUNS, ids=repr)
def test_a_list_of_runs_that_is_signed_and_lists_none_is_set_aside(folder, runs):
    run_into(folder, plan(2))
    (folder / "run.json").write_bytes(signed({"runs": runs}))
    assert problems(folder) == ["run.json: is signed, but does not list runs"]
    with pytest.raises(StoreError, match="run into it again"):
        Store(folder, write=False).runs()
    assert run_into(folder, plan(2)) == 0 and problems(folder) == []
    assert [name[:8] for name in Store(folder).rejected()] == ["run.json"]
    assert (folder / "rows.jsonl.gz").read_bytes() == whole()


STEP = f"steps/{Make(1).address}"
ENTRIES = (
    *("run.json", "rows.jsonl.gz", "x.jsonl.gz", "note", f"inputs/{'0' * 16}.jsonl", "locks/inputs.lock"),
    *("inputs", "specs", "steps", "partial", "locks", "rejected", "failures", "failures/x.txt"),
    *(STEP, f"{STEP}/seal.json", f"{STEP}/parts", f"{STEP}/parts/1.txt", f"{STEP}/more"),
    *(f"partial/{Make(1).address}.1.01234567", "steps/\udcff\n\x1b[31m"),
    *("steps/" + "long" * 60, f"{STEP}/" + "long" * 60),
)
ANYTHING = st.sampled_from(sorted(THINGS)) | st.binary(max_size=40)


@given(st.lists(st.tuples(st.sampled_from(ENTRIES), ANYTHING), max_size=4))
def test_whatever_befell_the_folder_it_is_told_and_the_run_goes_on(changes):
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        into = Path(name) / "results"
        run_into(into, plan(2))
        for where, thing in changes:
            path = into / where
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            try:
                path.unlink(missing_ok=True)
                path.write_bytes(thing) if isinstance(thing, bytes) else THINGS[thing](path)
            except OSError:
                continue  # its folder was taken away before
        for line in problems(into):
            line.encode()
            assert line.isprintable()
        if any((into / known).exists() for known in ("steps", "run.json")):
            assert run_into(into, plan(2)) == 0
            assert (into / "rows.jsonl.gz").read_bytes() == whole()
            known = (*plan(2).steps, *plan(2).inputs, *plan(2).specs)
            fatal = [problem.path for problem in Store(into).problems() if problem.fatal]
            assert not [path for path in fatal if any(name in path for name in known)]


def test_folders_in_folders_without_end_are_set_aside_as_one(folder):
    run_into(folder / "results", plan(2))
    step = folder / "results" / "steps" / Make(1).address
    handle = os.open(step, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=handle)
        below = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)
    assert any(line.startswith(f"steps/{step.name}/d: is foreign") for line in problems(folder / "results"))
    assert run_into(folder / "results", plan(2)) == 0 and problems(folder / "results") == []
    shutil.move(folder / "results" / "rejected", folder / "away")
    os.system(f"rm -rf {folder / 'away'}")  # deeper than Python's own removal goes


def test_status_prints_what_files_are_called_as_text(folder):
    run_into(folder, plan(2))
    (folder / "red \x1b[31m\n[bold]").touch()
    (folder / "rejected" / "x\udcff").touch()
    steps = [{"address": Make(7).address, "label": "two\nlines [red]\x1b"}]
    about = {
        "experiment": "\ud800",
        "model": "[bold]m",
        "digest": "d",
        "profile": "p",
        "seeds": [0],
        "steps": steps,
    }
    (folder / "run.json").write_bytes(signed({"runs": [about]}))
    done = CliRunner().invoke(status, [str(folder)])
    assert done.exception is None, done.output
    for line in ("\\ud800 on [bold]m (d), profile p", "  two\\nlines [red]\\x1b", "  x\\udcff"):
        assert line in done.output
    assert "red \\x1b[31m\\n[bold]: is foreign" in done.output and done.output.replace("\n", "").isprintable()


# ---- order ----


def test_a_schedule_gives_what_is_ready_and_drops_what_a_failure_takes():
    steps = plan(3).order()
    makes, asks = ([step for step in steps if step.kind == kind] for kind in ("make", "ask"))
    schedule = Schedule(steps)
    assert schedule.ready() is makes[0]
    assert schedule.ready(held={makes[0].address}) is makes[1]
    assert schedule.ready(held={make.address for make in makes}) is None
    schedule.finish(makes[1].address)
    lost = schedule.fail(makes[0].address)
    assert {step.address for step, _ in lost} == {asks[0].address, asks[2].address}
    assert {need for _, need in lost} == {makes[0].address}
    assert [step.address for step in schedule] == [makes[2].address, asks[1].address]
    schedule.finish(makes[2].address)
    assert schedule.ready() is asks[1]
    schedule.finish(asks[1].address)
    assert not schedule and schedule.ready() is None


# ---- files of measurements ----

TOY = catalogue.build("two-hop", facts=2)


@dataclass(frozen=True)
class Answer(Step):
    """A cell of a task, and the same answer to each of its items."""

    kind = "answer"

    items: Ref
    spec_hash: Ref
    seed: int

    def compute(self, context, folder):
        items = [Item(**line) for line in context.input(self.items)]
        info = CellInfo(
            "toy", "two", {}, self.spec_hash, self.items, None, None, "b", "d", "x", (), "sum", seed=self.seed
        )
        answers = (Row(info.key, item.id, "yes", {"correct": 1.0}) for item in items)
        (folder / "cells.jsonl").write_text(info.to_json() + "\n")
        (folder / "rows.jsonl").write_text("".join(row.to_json() + "\n" for row in answers))


def answering(seeds: int = 2) -> Plan:
    steps = Plan()
    items = [Item(f"i{n}", str(n), "g", "direct", f"is é {n}?", "yes") for n in range(3)]
    ref = steps.add_input(item.to_dict() for item in items)
    assert ref == items_hash(items)
    spec = steps.add_spec(TOY.to_json())
    assert spec == TOY.spec_hash
    steps.want(*(Answer(ref, spec, seed) for seed in range(seeds)))
    return steps


def test_a_runs_folder_is_one_of_measurements(folder):
    for name in ("one", "two"):
        assert run_into(folder / name, answering()) == 0
    read = files.read(folder / "one")
    assert len(read.cells) == 2 and len(read.rows) == 6
    ((task, items),) = read.items.items()
    assert [item.question for item in items] == ["is é 0?", "is é 1?", "is é 2?"]
    assert {info.items for info in read.cells.values()} == {task}
    assert read.specs == {TOY.spec_hash: json.loads(TOY.to_json())}
    for name in ("cells", "rows", "items", "specs"):
        one, two = ((folder / run / f"{name}.jsonl.gz").read_bytes() for run in ("one", "two"))
        assert one == two, name
    assert problems(folder / "one") == []
    (folder / "one" / "items.jsonl.gz").unlink()
    assert [line[:15] for line in problems(folder / "one")] == ["items.jsonl.gz:"]
    assert run_into(folder / "one", answering()) == 0 and problems(folder / "one") == []


def test_texts_that_are_gone_are_named_and_another_run_goes_on(folder):
    run_into(folder, answering())
    steps = answering()
    (folder / "inputs" / f"{next(iter(steps.inputs))}.jsonl").unlink()
    assert any("inputs/" in line and "is missing" in line for line in problems(folder))
    assert run_into(folder, plan(2), experiment="another") == 0  # which does not have them
    (line,) = problems(folder)
    assert line.startswith("cells.jsonl.gz: ") and "inputs/" in line
    assert files.content(folder, "items") == b""
    assert run_into(folder, steps) == 0 and problems(folder) == []
    assert len(files.read(folder, ("cells", "items")).items) == 1


def test_files_that_no_step_holds_any_more_are_set_aside(folder):
    run_into(folder, answering())
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(b"mine"))
    assert run_into(folder, plan(2)) == 0  # in the place of the first run
    assert sorted(path.name for path in folder.glob("*.gz")) == ["rows.jsonl.gz"]
    assert {name.partition(".")[0] for name in Store(folder).rejected()} == {"cells", "items", "specs", "x"}
    assert problems(folder) == []


CELLS = ["3", "{}", DEEP, '{"items": 3, "spec_hash": null}', '{"items": "x", "spec_hash": []}']


@pytest.mark.parametrize("line", CELLS, ids=range(5))
def test_cells_that_are_none_do_not_end_the_run(folder, line):
    @dataclass(frozen=True)
    class Odd(Step):
        kind = "odd"

        def compute(self, context, folder):
            (folder / "cells.jsonl").write_text(line + "\n")

    steps = Plan()
    steps.want(Odd())
    assert run_into(folder, steps) == 0
    assert any(told.startswith("cells.jsonl.gz: ") for told in problems(folder))
