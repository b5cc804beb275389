"""Which step comes next: order, readiness and what a failure takes with it. Nothing here touches a file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from llm_experiments.engine.addresses import Address
from llm_experiments.engine.steps import Step


class Schedule:
    """The open steps of a run, in their order. A step is ready when all it needs is done.

    order: every need before the step that has it, as Plan.order() gives them.
    """

    def __init__(self, order: Iterable[Step]):
        self._open = {step.address: step for step in order}
        self._done: set[Address] = set()

    def __iter__(self) -> Iterator[Step]:
        return iter(self._open.values())

    def __bool__(self) -> bool:
        return bool(self._open)

    def ready(self, held: Collection[Address] = ()) -> Step | None:
        """The first step that can be computed now; held: steps left to other processes."""
        steps = (step for step in self if step.address not in held)
        return next((step for step in steps if self._done.issuperset(step.needs)), None)

    def finish(self, address: Address) -> None:
        """The step has its results."""
        del self._open[address]
        self._done.add(address)

    def fail(self, address: Address) -> list[tuple[Step, Address]]:
        """The step has none and will not: it and every step that needs it, at any remove, leave the schedule.

        Returns the steps that are lost with it, each with the need that fails it.
        """
        del self._open[address]
        failed, lost = {address}, []
        for step in list(self):
            if need := next((need for need in step.needs if need in failed), None):
                lost.append((self._open.pop(step.address), need))
                failed.add(step.address)
        return lost
