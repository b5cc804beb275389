"""Cells, and how a set of them is computed: in order, each once, whatever interrupts it."""

from __future__ import annotations

import gc
import json
import signal
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from inspect import get_annotations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console
from rich.markup import escape

from llm_experiments.engine.progress import Display
from llm_experiments.engine.sealing import NO_SPACE, DiskFullError, StoreError, content_key, full
from llm_experiments.engine.store import Problem, Store

if TYPE_CHECKING:
    from llm_experiments.models.handle import LoadedModel

#: Seconds between two looks at a cell that another process computes.
POLL = 0.25


class Cell(ABC):
    """One unit of work with content-addressed results; a kind of cells is a frozen dataclass derived from it.

    kind: what it computes, in lower-case letters, digits and dashes. version: raised when `compute` changes
    what it writes, so that older results are not taken for new ones.
    The key is the hash of kind, version, spec() and the addresses of the cells it needs: whatever the results
    depend on has to be in there, and nothing else: a path, a device or a name for people is a property, or a
    field(compare=False).
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if taken := {"address", "document", "key"} & set(get_annotations(cls)):
            raise TypeError(f"{cls.__name__} has a field {min(taken)!r}, as every cell has: rename it")

    @abstractmethod
    def compute(self, context: Context, folder: Path) -> None:
        """Write the results into `folder`, which is empty. Rows to be kept go to `rows.jsonl` in it
        (Records) or another *.jsonl: the run gathers them by name."""

    @property
    def label(self) -> str:
        """What progress and messages call the cell."""
        return self.address

    @property
    def needs(self) -> tuple[Cell, ...]:
        """The cells whose results `compute` reads: by default every cell among the fields."""
        values = (getattr(self, item.name) for item in fields(self))
        each = (value if isinstance(value, tuple) else (value,) for value in values)
        return tuple(cell for group in each for cell in group if isinstance(cell, Cell))

    def spec(self) -> dict[str, Any]:
        """What is computed, as plain JSON values: by default the fields that count in comparisons."""
        asked = (item.name for item in fields(self) if item.compare)
        return {name: _plain(getattr(self, name), f"{name} of {self.kind}") for name in asked}

    @cached_property
    def document(self) -> dict[str, Any]:
        """What the key is the hash of; kept as spec.json beside the results."""
        needs = [cell.address for cell in self.needs]
        return {"kind": self.kind, "version": self.version, "needs": needs, "spec": self.spec()}

    @cached_property
    def key(self) -> str:
        """16 hex digits, equal in every process for equal work."""
        return content_key(self.document)

    @cached_property
    def address(self) -> str:
        """<kind>-<key>: the cell's folder."""
        return f"{self.kind}-{self.key}"


def _plain(value: Any, what: str) -> Any:
    """A field of a spec as JSON values. Errors: StoreError on what has no fixed JSON, such as a path."""
    if isinstance(value, Cell):
        return value.address
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, what) for key, item in value.items()}
    if isinstance(value, tuple | list | range):
        return [_plain(item, what) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(item, what) for item in value)
    if hasattr(value, "to_json"):
        return json.loads(value.to_json())
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: _plain(getattr(value, item.name), what) for item in fields(value)}
    raise StoreError(f"{what} is {value!r}, which has no fixed JSON: use plain values or override spec()")


def in_order(cells: Iterable[Cell]) -> list[Cell]:
    """The cells and all they need, each once, needs first; otherwise in the order given."""
    order: dict[str, Cell] = {}

    def add(cell: Cell) -> None:
        if cell.address not in order:
            for need in cell.needs:
                add(need)
            order[cell.address] = cell

    for cell in cells:
        add(cell)
    return list(order.values())


class Context:
    """What a cell may use while it computes: the model, the results of the cells it needs, a log.

    load: makes the model; called at the first use of `model`, once, and not again if it failed.
    """

    def __init__(
        self,
        store: Store,
        load: Callable[[], LoadedModel] | None = None,
        log: Callable[[str], None] = lambda text: None,
    ):
        self.store = store
        self.log = log
        self._load = load
        self._model: LoadedModel | None = None
        self._failure: Exception | None = None
        self._cell: Cell | None = None

    @property
    def model(self) -> LoadedModel:
        """The model of this run. Errors: what loading it raised, at every use."""
        if self._failure is not None:
            raise self._failure
        if self._model is None:
            if self._load is None:
                raise StoreError("this run has no model: give --model")
            try:
                self._model = self._load()
            except Exception as error:
                self._failure = error
                raise
        return self._model

    def results(self, cell: Cell) -> Path:
        """The folder of a finished cell. Errors: StoreError if the cell that is computed does not need it."""
        allowed = None if self._cell is None else {need.address for need in in_order(self._cell.needs)}
        if allowed is not None and cell.address not in allowed:
            raise StoreError(f"{self._cell.kind} reads {cell.address} without needing it: name it in `needs`")
        return self.store.results(cell.address)

    @contextmanager
    def computing(self, cell: Cell) -> Iterator[None]:
        """Results are those the cell may read."""
        self._cell = cell
        try:
            yield
        finally:
            self._cell = None


class Stopped(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


@dataclass
class Summary:
    """How a run went: names of finished cells, of those computed now, and a line for each that failed."""

    finished: list[str] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Exit status: 0, or 1 if a cell failed."""
        return 1 if self.failed else 0


def run(
    cells: Sequence[Cell],
    store: Store,
    context: Context,
    *,
    progress: bool = True,
    console: Console | None = None,
) -> Summary:
    """Compute the cells that are not finished, and what they need; then write rows.jsonl.gz.

    A cell that another process holds is left to it and looked at again later. A cell that fails takes those
    that need it with it, the others go on. Damaged results are set aside, named, and computed anew.
    Errors: a full disk (DiskFullError), KeyboardInterrupt and SIGTERM (Stopped) end the run at once; finished
    cells are kept in any case.
    """
    order = in_order(cells)
    summary, done = Summary(), set()
    with Display(order, store, progress, console) as display, _terminable():
        context.log = lambda text: display.log(escape(text))
        pending = list(order)
        while pending:
            left = []
            for cell in pending:
                if lost := next((need for need in cell.needs if need.address in summary.failed), None):
                    summary.failed[cell.address] = f"{cell.label}: needs {lost.label}, which failed"
                elif not all(need.address in done for need in cell.needs) or not _finish(
                    cell, store, context, summary, display
                ):
                    left.append(cell)
                    continue
                if cell.address not in summary.failed:
                    done.add(cell.address)
                    summary.finished.append(cell.address)
                display.passed(cell, failed=cell.address in summary.failed)
            if len(left) == len(pending):
                display.waiting(left)
                time.sleep(POLL)
            pending = left
        store.assemble()
    return summary


def _finish(cell: Cell, store: Store, context: Context, summary: Summary, display: Display) -> bool:
    """See that the cell is finished, or failed; False while another process computes it."""
    if store.path(cell.address).exists() and not store.inspect(cell.address):
        return True
    with store.lock(cell.address) as mine:
        if not mine:
            return False
        for problem in store.set_aside(cell.address):
            summary.problems.append(problem)
            again = f"; {cell.label} is computed again" if problem.fatal else ""
            display.log(f"[yellow]set aside[/yellow] {escape(f'{problem}{again}')}")
        if store.path(cell.address).exists():
            return True
        display.begin(cell)
        try:
            meta = {"label": cell.label, "finished": datetime.now(UTC).isoformat(timespec="seconds")}
            with context.computing(cell), store.computing(cell, meta) as folder:
                cell.compute(context, folder)
                meta["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        except DiskFullError as error:
            raise DiskFullError(f"{cell.label}: {error}") from error
        except Exception as error:
            if disk := _no_space(error):
                raise DiskFullError(f"{cell.label}: {full(store.folder, 'its results', disk)}") from error
            store.note_failure(cell.address, "".join(traceback.format_exception(error)))
            line = f"{cell.label}: {explain(error)}"
            if _unexpected(error):
                line += f" (traceback: {store.folder / 'failures' / cell.address}.txt)"
            summary.failed[cell.address] = line
            display.log(f"[red]failed[/red] {escape(line)}")
            # The frames of the traceback hold the tensors that did not fit.
            traceback.clear_frames(error.__traceback__)
            _free()
            return True
        store.note_failure(cell.address, None)
        summary.computed.append(cell.address)
    return True


# ---- errors ----


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, and so on."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _no_space(error: BaseException) -> BaseException | None:
    """The error underneath that says that the disk is full: an OSError, or what Rust and C++ writers say."""
    for cause in _chain(error):
        told = "No space left on device" in str(cause) or "os error 28" in str(cause)
        if told or (isinstance(cause, OSError) and cause.errno in NO_SPACE):
            return cause
    return None


def _no_memory(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    told = "allocate memory" in str(error) or "out of memory" in str(error).lower()
    return (
        "OutOfMemoryError" in names
        or isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and told)
    )


def _unexpected(error: BaseException) -> bool:
    """Whether the error is none that the packages raise on purpose, so that its traceback is wanted."""
    return not _no_memory(error) and not (isinstance(error, ValueError) and type(error) is not ValueError)


def explain(error: BaseException) -> str:
    """One line for an error of a cell: what happened and what to do."""
    text = " ".join(str(error).split())
    if _no_memory(error):
        said = f" ({text[:200]})" if text else ""
        return (
            f"out of memory{said}: choose a smaller --model or --profile, --four-bit or --dtype bfloat16, "
            "or free memory; then run the same command again"
        )
    if not _unexpected(error):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _free() -> None:
    """Give back memory after a failure, the GPU's too if torch is in use."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises Stopped, so that it ends the run like Ctrl-C does; elsewhere than in main: no change."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped("SIGTERM")

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
