"""The engine of one process: computes a plan's steps in order, each once, whatever interrupts it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape

from llm_experiments.engine.addresses import Address
from llm_experiments.engine.context import Context
from llm_experiments.engine.errors import explain, free, no_space, unexpected
from llm_experiments.engine.progress import Display, Entry
from llm_experiments.engine.schedule import Schedule
from llm_experiments.engine.sealing import DiskFullError, full
from llm_experiments.engine.seals import Problem
from llm_experiments.engine.steps import Plan, Step, in_order
from llm_experiments.engine.store import Store

#: Seconds between two looks at a step that another process computes.
POLL = 0.25


@dataclass
class Summary:
    """How a run went: addresses of finished steps, of those computed now, and a line for each that failed."""

    finished: list[Address] = field(default_factory=list)
    computed: list[Address] = field(default_factory=list)
    failed: dict[Address, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Exit status: 0, or 1 if a step failed."""
        return 1 if self.failed else 0


def run(
    plan: Plan,
    store: Store,
    context: Context,
    *,
    wanted: Collection[Address] | None = None,
    progress: bool = True,
    console: Console | None = None,
) -> Summary:
    """Compute the plan's steps that are not finished, and what they need; then write rows.jsonl.gz.

    wanted: only these, in place of the plan's. A step that another process holds is left to it and looked at
    again later. A step that fails takes those that need it with it, the others go on. Damaged results are set
    aside, named, and computed anew.
    Errors: a full disk (DiskFullError) and KeyboardInterrupt end the run at once; finished steps are kept in
    any case, also when the process is killed.
    """
    order = plan.order() if wanted is None else in_order(plan.steps, wanted)
    entries = [entry(step) for step in order]
    schedule, summary, held = Schedule(order), Summary(), set[Address]()
    with Display(entries, store.seconds, progress, console) as display:
        context.log = lambda text: display.log(escape(text))
        _note(store.add_inputs(plan.inputs, plan.specs), summary, display)
        while schedule:
            if (step := schedule.ready(held)) is None:
                display.waiting(entry(next(step for step in schedule if step.address in held)))
                time.sleep(POLL)
                held.clear()
            elif not _finish(step, store, context, summary, display):
                held.add(step.address)
            elif step.address in summary.failed:
                lost = schedule.fail(step.address)
                for other, need in lost:
                    line = f"{other.label}: needs {plan.steps[need].label}, which failed"
                    summary.failed[other.address] = line
                for other in (step, *(other for other, _ in lost)):
                    display.passed(entry(other), failed=True)
            else:
                schedule.finish(step.address)
                summary.finished.append(step.address)
                display.passed(entry(step), failed=False)
        _note(store.assemble(), summary, display)
    return summary


def entry(step: Step) -> Entry:
    """The step as lists of steps show it."""
    return Entry(step.kind, step.address, step.label)


def compute(step: Step, store: Store, context: Context) -> None:
    """Compute one step into the store and seal it; the caller holds its lock. Errors: whatever it raises."""
    meta = {"label": step.label}
    with context.computing(step.needs), store.computing(step, meta) as folder:
        step.compute(context, folder)
        meta["finished"] = datetime.now(UTC).isoformat(timespec="seconds")


def _finish(step: Step, store: Store, context: Context, summary: Summary, display: Display) -> bool:
    """See that the step is finished, or failed; False while another process computes it."""
    if store.sound(step.address):
        return True
    with store.lock(step.address) as mine:
        if not mine:
            return False
        _note(store.set_aside(step.address), summary, display, step)
        if store.finished(step.address):
            return True
        display.begin(entry(step))
        try:
            compute(step, store, context)
        except DiskFullError as error:
            raise DiskFullError(f"{step.label}: {error}") from error
        except Exception as error:
            if store.lost(step.address):  # what was written of it is the other's to remove, and was
                display.log(f"{escape(step.label)}: another worker took it over")
                return False
            if disk := no_space(error):
                raise DiskFullError(f"{step.label}: {full(store.folder, 'its results', disk)}") from error
            store.note_failure(step.address, "".join(traceback.format_exception(error)))
            line = f"{step.label}: {explain(error)}"
            if unexpected(error):
                line += f" (traceback: {store.folder / 'failures' / step.address}.txt)"
            summary.failed[step.address] = line
            display.log(f"[red]failed[/red] {escape(line)}")
            # The frames of the traceback hold the tensors that did not fit.
            traceback.clear_frames(error.__traceback__)
            free()
            return True
        store.note_failure(step.address, None)
        summary.computed.append(step.address)
    return True


def _note(problems: list[Problem], summary: Summary, display: Display, step: Step | None = None) -> None:
    """Say what was set aside."""
    for problem in problems:
        summary.problems.append(problem)
        again = f"; {step.label} is computed again" if step and problem.fatal else ""
        display.log(f"[yellow]set aside[/yellow] {escape(f'{problem}{again}')}")
