"""The engine of a cluster: actors, and the driver, killed; the rows are those of the local engine.

GPUs are logical: Ray counts them, nobody computes on them. Steps need no model (toy_steps.py).
"""

import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import pytest
from toy_steps import Conditions, plan, run_into

from llm_experiments.engine.ray import Cluster, run
from llm_experiments.engine.sealing import StoreError
from llm_experiments.engine.store import Store

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")
LEASE = 1.0


@pytest.fixture
def folder():
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this host with two GPUs, and its address."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent)]))
        how = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 100 * 2**20}
        yield ray.init(num_cpus=3, num_gpus=2, **how).address_info["gcs_address"]
        ray.shutdown()


def begun(log):
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def drive(into, log, count, pause, restarts, address=None):
    store = Store(into, lease=LEASE)
    steps = plan(count, Conditions(log, pause))
    store.add_run({"experiment": "toy"}, steps.listed())
    return run(steps, store, None, Cluster(address, restarts=restarts), lease=LEASE)


def assert_whole(into, folder, count):
    assert run_into(folder / "alone", plan(count)) == 0
    assert (into / "rows.jsonl.gz").read_bytes() == (folder / "alone" / "rows.jsonl.gz").read_bytes()
    for step in plan(count).steps:
        assert Store(into).seal(step)["files"] == Store(folder / "alone").seal(step)["files"]
    assert Store(into).problems() == [] and list((into / "failures").iterdir()) == []


def killer(log, seed, kills, told):
    """Kill, at random times, whoever began a step last."""
    rng, killed = random.Random(seed), 0
    while killed < kills:
        time.sleep(rng.uniform(0.05, 0.4))
        if lines := begun(log):
            try:
                os.kill(int(lines[-1][1]), signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed += 1
            told.value = killed


@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_actors_killed_at_random_points_leave_the_rows_of_the_local_engine(cluster, folder, kills):
    into, log = folder / "results", folder / "log"
    context = multiprocessing.get_context("spawn")
    told = context.Value("i", 0)
    count = 4 if kills < 5 else 60
    child = context.Process(target=killer, args=(log, kills, kills, told))
    child.start()
    try:
        summary = drive(into, log, count, 0.4, restarts=kills)
    finally:
        child.kill()
        child.join()
    assert told.value == kills and summary.failed == {}
    assert sorted(summary.finished) == sorted(plan(count).steps)
    assert len({pid for _, pid in begun(log)}) >= 2
    assert_whole(into, folder, count)


@pytest.mark.slow
def test_the_driver_killed_at_random_points_leaves_what_goes_on(cluster, folder):
    rng, context, count, killed = random.Random(0), multiprocessing.get_context("spawn"), 12, 0
    into, log = folder / "results", folder / "log"
    while True:
        seen = len(begun(log))
        before = {entry.name for entry in (into / "steps").glob("*")}
        child = context.Process(target=drive, args=(into, log, count, 1.0, 3, cluster))
        child.start()
        end = time.monotonic() + 60
        while len(begun(log)) == seen and child.exitcode is None and time.monotonic() < end:
            time.sleep(0.01)
        child.join(rng.uniform(0.0, 1.0) if killed < 10 else 90)
        if child.exitcode is None:
            child.kill()
            killed += 1
        child.join()
        assert not before & {address for address, _ in begun(log)[seen:]}, (
            "a finished step was computed again"
        )
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL and killed <= 10
    assert killed == 10
    time.sleep(2 * LEASE)
    assert_whole(into, folder, count)


def test_more_than_the_cluster_has_is_refused(cluster, folder):
    store = Store(folder / "results", lease=LEASE)
    with pytest.raises(StoreError, match=r"3 CPUs and 2 GPUs, no room for an actor with 1 and 5"):
        run(plan(1), store, None, Cluster(gpus=5))
    with pytest.raises(StoreError, match="cpus is 0: give 1 or more"):
        Cluster(cpus=0)
