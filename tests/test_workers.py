"""Workers share a folder by leases: killed, stopped, their clocks apart, they leave what one run leaves.

Processes and signals are real (toy_steps.work). Another host is a process without the file locks of others
and with clocks of its own; the folder is the one thing they have in common.
"""

import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from toy_steps import Make, as_another_host, plan, run_into, work

from llm_experiments.engine.leases import BEATS, Leases
from llm_experiments.engine.sealing import StoreError
from llm_experiments.engine.store import Store

#: Hosts whose clocks are years apart.
CLOCKS = (0.0, 1e8, -1e8)
LEASE = 1.0


@pytest.fixture(scope="module")
def processes():
    """Processes that begin with our modules loaded, and with no threads of the tests'."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toy_steps"])
    return context


@pytest.fixture
def folder():
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@contextmanager
def ended(*children):
    """None of the processes outlives the block, whatever happens in it."""
    try:
        yield
    finally:
        for child in children:
            if child.pid is not None and child.exitcode is None:
                child.kill()
                child.join()


def await_(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def begun(log):
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def finished(into):
    return {entry.name for entry in (into / "steps").glob("*")}


def assert_whole(into, folder, count):
    """What an uninterrupted run of one process leaves: the same bytes, and nothing beside."""
    assert run_into(folder / "alone", plan(count)) == 0
    assert (into / "rows.jsonl.gz").read_bytes() == (folder / "alone" / "rows.jsonl.gz").read_bytes()
    for step in plan(count).steps:
        assert Store(into).seal(step)["files"] == Store(folder / "alone").seal(step)["files"]
    store = Store(into, lease=0.05)
    time.sleep(0.1)
    store.clean()  # drafts of leases that died being made
    assert list((into / "partial").iterdir()) == [] == list((into / "failures").iterdir())
    assert store.problems() == [] and store.rejected() == []


@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_workers_killed_at_random_points_leave_the_rows_of_one_that_was_not(processes, folder, kills):
    """Three hosts at a time; of a step that was finished none computes it again."""
    rng, killed, number = random.Random(kills), 0, 0
    while killed < kills:
        into, log, count = folder / str(number), folder / f"log.{number}", 4
        number += 1
        while True:
            before, seen = finished(into), len(begun(log))
            crew = [processes.Process(target=work, args=(into, log, count, 0.05, 0.4, c)) for c in CLOCKS]
            with ended(*crew):
                for child in crew:
                    child.start()
                for child in rng.sample(crew, 2):
                    child.join(rng.uniform(0.0, 0.4))
                    if child.exitcode is None and killed < kills:
                        os.kill(child.pid, signal.SIGKILL)
                        killed += 1
                for child in crew:
                    child.join(60)
            assert not before & set(begun(log)[seen:]), "a finished step was computed again"
            codes = [child.exitcode for child in crew]
            assert set(codes) <= {0, -signal.SIGKILL}
            if 0 in codes:
                break
        assert_whole(into, folder / f"whole.{number}", count)
    assert killed == kills


def test_a_stopped_worker_loses_its_step_and_goes_on_without_a_failure(processes, folder):
    into, log = folder / "results", folder / "log"
    first, second = (
        processes.Process(target=work, args=(into, log, 1, 1.0, 0.5, clock)) for clock in CLOCKS[:2]
    )
    with ended(first, second):
        first.start()
        await_(lambda: begun(log) == [Make(0).address])
        os.kill(first.pid, signal.SIGSTOP)
        second.start()
        await_(lambda: len(begun(log)) >= 2)
        assert begun(log)[:2] == [Make(0).address] * 2  # taken over while its holder lives
        os.kill(first.pid, signal.SIGCONT)
        first.join(60)
        second.join(60)
        assert (first.exitcode, second.exitcode) == (0, 0)
    assert_whole(into, folder, 1)


@pytest.mark.parametrize("clock", [None, 0.0])
def test_what_a_worker_that_lives_computes_is_left_to_it_also_by_a_plain_run(processes, folder, clock):
    into, log = folder / "results", folder / "log"
    child = processes.Process(target=work, args=(into, log, 1, 30.0, LEASE, clock))
    with ended(child):
        child.start()
        await_(lambda: begun(log) == [Make(0).address])
        plain, worker = Store(into), Store(into, lease=LEASE)  # neither cleans away what is being computed
        end = time.monotonic() + 2.5 * LEASE
        while time.monotonic() < end:
            for store in (plain, worker):
                with store.lock(Make(0).address) as mine:
                    assert not mine
            time.sleep(0.1)
        assert any(entry.name.startswith(Make(0).address) for entry in (into / "partial").iterdir())


def test_a_worker_that_died_on_this_host_is_succeeded_at_once(processes, folder):
    into, log = folder / "results", folder / "log"
    child = processes.Process(target=work, args=(into, log, 1, 30.0, 3600.0, None))
    with ended(child):
        child.start()
        await_(lambda: begun(log) == [Make(0).address])
    assert (into / "locks" / f"{Make(0).address}.lease").exists()
    start = time.monotonic()
    assert run_into(into, plan(1), lease=3600.0) == 0
    assert time.monotonic() - start < 60
    assert_whole(into, folder, 1)


def add_ones(folder, times, clock):
    """Add to a number in a file what only one process at a time can add."""
    as_another_host(clock)
    store = Store(folder / "results", lease=20.0)
    for _ in range(times):
        with store.lock("number", wait=True):
            number = int((folder / "number").read_text())
            time.sleep(0.001)
            (folder / "number").write_text(str(number + 1))


def test_one_process_at_a_time_holds_a_lease(processes, folder):
    (folder / "number").write_text("0")
    crew = [processes.Process(target=add_ones, args=(folder, 20, clock)) for clock in CLOCKS]
    with ended(*crew):
        for child in crew:
            child.start()
        for child in crew:
            child.join(60)
    assert (folder / "number").read_text() == str(20 * len(CLOCKS))


# ---- leases by themselves ----


@pytest.fixture
def leases(folder):
    """Leases in one folder, as processes with nothing else in common have them."""

    def of(seconds):
        return Leases(folder, lambda name: folder / f"{name}.{random.getrandbits(64):x}", seconds)

    return of


def test_only_the_count_tells_whether_a_holder_lives(leases, folder, monkeypatch):
    """Neither a clock nor the time of a file: a lease of 1970, or of 2100, lives while it beats."""
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)  # the test beats
    holder, other, now = leases(10.0), leases(10.0), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert holder.take("x", False)
    path = folder / "x.lease"
    for beat in range(5):
        os.utime(path, (0, 0) if beat % 2 else (4.1e9, 4.1e9))
        assert not other.take("x", False)
        now[0] += 9.9
        assert not other.take("x", True)  # nor does a file lock, where the holder had none
        with path.open("r+b") as file:
            file.write(b"%016d" % (beat + 1))
    assert not other.vacant("x", False)
    now[0] += 10.0
    assert other.take("x", False) and holder.lost("x") and not other.lost("x")
    holder.release("x")  # not the successor's
    assert path.exists() and not other.lost("x")
    other.release("x")
    assert list(folder.iterdir()) == []


def test_a_holder_beats_often_and_not_into_its_successors_lease(leases, folder):
    holder, path = leases(0.2), folder / "x.lease"
    assert holder.take("x", False)
    first = path.read_bytes()
    await_(lambda: int(path.read_bytes()[:16]) > BEATS)
    assert path.read_bytes()[16:] == first[16:]
    path.rename(folder / "aside")
    path.write_bytes(b"the successor's")
    count = (folder / "aside").read_bytes()[:16]
    await_(lambda: (folder / "aside").read_bytes()[:16] > count)
    assert path.read_bytes() == b"the successor's" and holder.lost("x")


def test_a_lease_that_was_granted_twice_by_a_repeated_request_is_taken(leases, monkeypatch):
    """NFS: the answer to link(2) is lost, the request repeated, and refused, as the name is there."""
    link = os.link

    def repeated(source, target):
        link(source, target)
        raise FileExistsError(target)

    monkeypatch.setattr(os, "link", repeated)
    assert leases(60.0).take("x", False)
    monkeypatch.setattr(os, "link", link)
    assert not leases(60.0).take("x", False)


def test_one_judged_dead_too_late_keeps_its_lease(leases, folder, monkeypatch):
    """Between the judgement and the rename another took it over: it gets its file back, the same file."""
    other, taker, now = leases(1.0), leases(1.0), [0.0]
    (folder / "x.lease").write_bytes(b"0 dead -\n")
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert not other.broken("x", False) and not taker.broken("x", False)
    now[0] = 1.0
    rename = os.rename

    def late(source, target):
        monkeypatch.setattr(os, "rename", rename)
        assert taker.take("x", False)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert not other.broken("x", False)
    assert not taker.lost("x") and [path.name for path in folder.iterdir()] == ["x.lease"]


def test_a_lease_lasts_longer_than_nothing(folder):
    with pytest.raises(StoreError, match=r"lease of 0.0 seconds .* more than 0"):
        Store(folder, lease=0.0)
