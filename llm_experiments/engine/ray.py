"""The engine of a cluster: one Ray actor per GPU, or per so many CPUs, each a worker on the shared folder.

Ray places actors, keeps them alive and shows them; which step is whose, leases say (engine.leases), as
between any workers. Nothing but the plan travels: results go through the store, and an actor loads its base
once, at the first step that needs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_experiments.engine.addresses import Address
from llm_experiments.engine.context import Context
from llm_experiments.engine.leases import SECONDS
from llm_experiments.engine.local import Summary
from llm_experiments.engine.local import run as run_here
from llm_experiments.engine.sealing import DiskFullError, StoreError
from llm_experiments.engine.steps import Plan
from llm_experiments.engine.store import Store

if TYPE_CHECKING:
    from llm_experiments.models.handle import LoadedModel


@dataclass(frozen=True)
class Cluster:
    """Where actors run and what each has.

    address: of a running cluster, 'auto', or None: one of this host, ended with the run. gpus: of each actor;
    several where a base does not fit one (then --device split); None: one, or none if the cluster has none.
    cpus: of each actor. restarts: how often a dead actor is started anew before the run gives up on it.
    """

    address: str | None = None
    gpus: float | None = None
    cpus: int = 1
    restarts: int = 5

    def __post_init__(self) -> None:
        for name, value in (("gpus", self.gpus or 0), ("cpus", self.cpus - 1), ("restarts", self.restarts)):
            if value < 0:
                least = 1 if name == "cpus" else 0
                raise StoreError(f"{name} is {getattr(self, name)}: give {least} or more")


def run(
    plan: Plan,
    store: Store,
    load: Callable[[], LoadedModel] | None,
    cluster: Cluster,
    *,
    wanted: Collection[Address] | None = None,
    lease: float = SECONDS,
) -> Summary:
    """Compute the plan's steps as engine.local.run() does, by as many actors as the cluster has room for.

    store: a worker's, in a folder that all hosts of the cluster have under this path. lease: of the actors.
    Errors: StoreError if there is no Ray, no such cluster, or no room for an actor; an actor's full disk.
    """
    try:
        import ray
    except ImportError:
        raise StoreError(
            "the engine 'ray' needs Ray, which is not installed: pip install 'lora-limits[ray]'"
        ) from None
    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(address=cluster.address, log_to_driver=False)
        except ConnectionError as error:
            raise StoreError(
                f"there is no cluster at {cluster.address!r}: `ray start --head` makes one"
            ) from error
    try:
        there = ray.cluster_resources()
        gpus = cluster.gpus if cluster.gpus is not None else float(there.get("GPU", 0) >= 1)
        count = int(there.get("CPU", 0) // cluster.cpus)
        count = min(count, int(there.get("GPU", 0) // gpus)) if gpus else count
        if count < 1:
            raise StoreError(
                f"the cluster has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs, no room for "
                f"an actor with {cluster.cpus} and {gpus:g}: ask for less, or add hosts"
            )
        store.add_inputs(plan.inputs, plan.specs)
        how = {"num_cpus": cluster.cpus, "num_gpus": gpus, "max_restarts": cluster.restarts}
        actor = ray.remote(Worker).options(**how, max_task_retries=cluster.restarts)
        shared = ray.put(plan)
        folder = os.path.abspath(store.folder)
        actors = [actor.remote(folder, load, lease) for _ in range(count)]
        tasks = {each.compute.remote(shared, wanted): each for each in actors}
        return _gathered(plan, store, tasks, ray)
    finally:
        if mine:
            ray.shutdown()


def _gathered(plan: Plan, store: Store, tasks: dict[Any, Any], ray: Any) -> Summary:
    """What all actors say together. One that died for good is the others' to make up for."""
    order = [step.address for step in plan.order()]
    summary, died = Summary(), []
    waiting = list(tasks)
    while waiting:
        (done, *_), waiting = ray.wait(waiting)
        try:
            one = ray.get(done)
        except ray.exceptions.RayActorError as error:
            died.append(error)
            continue
        except ray.exceptions.RayTaskError as error:
            if isinstance(cause := error.cause, DiskFullError | StoreError):
                raise type(cause)(str(cause)) from error
            raise
        summary.computed += [address for address in one.computed if address not in summary.computed]
        summary.failed |= one.failed
        summary.problems += one.problems
        summary.finished = one.finished
    if died and len(died) == len(tasks):
        left = sum(not store.finished(address) for address in order)
        raise StoreError(f"all actors died, {left} steps are left: run the same command again ({died[-1]})")
    return summary


class Worker:
    """An actor: a store, a context and, from its first use on, a base."""

    def __init__(self, folder: str, load: Callable[[], LoadedModel] | None, lease: float):
        self._open = partial(Store, folder, lease=lease)
        self._load = load
        self._context: Context | None = None

    def compute(self, plan: Plan, wanted: Collection[Address] | None) -> Summary:
        """Take free steps until all are finished."""
        store = self._open()
        self._context = self._context or Context(store, self._load)
        return run_here(plan, store, self._context, wanted=wanted, progress=False)
