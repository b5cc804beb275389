"""Steps, the units of a run, each named by the hash of what it computes; and plans, which hold steps.

A step is small data. The steps it needs it names by address, the texts it works on by their hash, so that it
pickles, travels, and computes the same wherever the store has what it names.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from inspect import get_annotations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from llm_experiments.engine.addresses import Address, Ref, content_key
from llm_experiments.engine.inputs import decoded, encoded
from llm_experiments.engine.runs import Listed
from llm_experiments.engine.sealing import StoreError

if TYPE_CHECKING:
    from llm_experiments.engine.context import Context

Name = TypeVar("Name", Address, Ref)


@dataclass(frozen=True)
class Resources:
    """What a step occupies while it computes; no part of its key.

    model: the run's language model. training: memory for gradients and optimizer states beside it.
    """

    model: bool = False
    training: bool = False


class Step(ABC):
    """One unit of work with content-addressed results; a kind of steps is a frozen dataclass derived from it.

    kind: what it computes, in lower-case letters, digits and dashes. version: raised when `compute` changes
    what it writes, so that older results are not taken for new ones.
    The key is the hash of kind, version, spec() and the addresses of the steps it needs: whatever the results
    depend on has to be in there, and nothing else: a path, a device or a name for people is a property, or a
    field(compare=False). Fields hold plain values: no other step (its Address), no texts (their Ref).
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    resources: ClassVar[Resources] = Resources()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if taken := {"address", "document", "key"} & set(get_annotations(cls)):
            raise TypeError(f"{cls.__name__} has a field {min(taken)!r}, as every step has: rename it")

    @abstractmethod
    def compute(self, context: Context, folder: Path) -> None:
        """Write the results into `folder`, which is empty. Rows to be kept go to `rows.jsonl` in it
        or another *.jsonl: the run gathers them by name."""

    @property
    def label(self) -> str:
        """What progress and messages call the step."""
        return self.address

    @property
    def batch_key(self) -> str | None:
        """Steps of one key may be computed together, as adapters of one recipe are trained; None: alone."""
        return None

    @property
    def needs(self) -> tuple[Address, ...]:
        """The steps whose results `compute` reads: by default every address in the fields."""
        return tuple(self._named(Address))

    @property
    def texts(self) -> tuple[Ref, ...]:
        """The inputs and specs that `compute` reads: every reference in the fields."""
        return tuple(self._named(Ref))

    def _named(self, kind: type[Name]) -> dict[Name, None]:
        return dict.fromkeys(name for item in _fields(self) for name in _within(getattr(self, item), kind))

    def spec(self) -> dict[str, object]:
        """What is computed, as plain JSON values: by default the fields that count in comparisons."""
        return {name: _plain(getattr(self, name), f"{name} of {self.kind}") for name in _fields(self, True)}

    @cached_property
    def document(self) -> dict[str, object]:
        """What the key is the hash of; kept as spec.json beside the results."""
        return {"kind": self.kind, "version": self.version, "needs": list(self.needs), "spec": self.spec()}

    @cached_property
    def key(self) -> str:
        """16 hex digits, equal in every process for equal work."""
        return content_key(self.document)

    @cached_property
    def address(self) -> Address:
        """<kind>-<key>: the step's folder."""
        return Address(f"{self.kind}-{self.key}")

    def __getstate__(self) -> dict[str, object]:
        """The fields alone: what follows from them does not travel."""
        return {name: getattr(self, name) for name in _fields(self)}


def _fields(value: Any, compared: bool = False) -> list[str]:
    """Names of a dataclass's fields; with `compared`, of those that count in comparisons."""
    return [item.name for item in fields(value) if item.compare or not compared]


def _within(value: object, kind: type[Name]) -> Iterator[Name]:
    """The names of that kind in a field's value, at any depth."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Step):
        raise StoreError(f"a step holds the step {value.address}: name it by its address")
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _within(item, kind)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _within(item, kind)
    elif is_dataclass(value):
        for name in _fields(value):
            yield from _within(getattr(value, name), kind)


def _plain(value: Any, what: str) -> Any:
    """A field of a spec as JSON values. Errors: StoreError on what has no fixed JSON, such as a path."""
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
    if is_dataclass(value):
        return {name: _plain(getattr(value, name), what) for name in _fields(value)}
    raise StoreError(f"{what} is {value!r}, which has no fixed JSON: use plain values or override spec()")


def in_order(steps: Mapping[Address, Step], wanted: Iterable[Address]) -> list[Step]:
    """The wanted steps and all they need, each once, needs first; otherwise in the order given."""
    order: dict[Address, Step] = {}

    def add(address: Address) -> None:
        if address not in order:
            for need in steps[address].needs:
                add(need)
            order[address] = steps[address]

    for address in wanted:
        add(address)
    return list(order.values())


@dataclass
class Plan:
    """What a run computes: steps by address, which of them are wanted, and the texts they name.

    inputs: JSON lines by their hash. specs: the JSON of compositions by spec hash. Both go into the store
    before the first step is computed.
    """

    steps: dict[Address, Step] = field(default_factory=dict)
    wanted: dict[Address, None] = field(default_factory=dict)
    inputs: dict[Ref, bytes] = field(default_factory=dict)
    specs: dict[Ref, bytes] = field(default_factory=dict)

    def add(self, step: Step) -> Address:
        """Enter a step that others need; its address.

        Errors: StoreError if it names a step or an input that was not entered before.
        """
        if step.address not in self.steps:
            unknown: list[str] = [need for need in step.needs if need not in self.steps]
            texts = (self.inputs, self.specs)
            unknown += [ref for ref in step.texts if not any(ref in known for known in texts)]
            if unknown:
                raise StoreError(f"{step.label} names {unknown[0]}, which is not planned: add it first")
            self.steps[step.address] = step
        return step.address

    def want(self, *steps: Step) -> None:
        """Enter steps whose results are wanted."""
        self.wanted |= dict.fromkeys(self.add(step) for step in steps)

    def add_input(self, lines: Iterable[object]) -> Ref:
        """Enter an input, one line for each value; the name of it. Errors: StoreError on what is no JSON."""
        content = encoded(lines)
        self.inputs[ref := Ref.of(content)] = content
        return ref

    def add_spec(self, text: str) -> Ref:
        """Enter the canonical JSON of a composition; its spec hash."""
        content = text.encode()
        self.specs[ref := Ref.of(content)] = content
        return ref

    def input(self, ref: Ref) -> list[Any]:
        """The lines of an input. Errors: KeyError on one that was not entered."""
        return decoded(self.inputs[ref])

    def spec(self, ref: Ref) -> str:
        """The JSON of a composition. Errors: KeyError on one that was not entered."""
        return self.specs[ref].decode()

    def include(self, other: Plan) -> None:
        """Enter all of another plan."""
        for name in ("inputs", "specs", "steps", "wanted"):
            getattr(self, name).update(getattr(other, name))

    def order(self) -> list[Step]:
        """The wanted steps and all they need, each once, needs first."""
        return in_order(self.steps, self.wanted)

    def listed(self) -> list[Listed]:
        """The same as a list of runs has them."""
        return [Listed(address=step.address, label=step.label) for step in self.order()]
