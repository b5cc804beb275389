"""The lines of a folder of measurements: an item, what is constant in a cell, and one answer.

    Item       one question in one wording, with what is right and what else could be answered
    CellInfo   all that is constant while one library under one merge is asked: said once, by the producer
    Row        one answer: to which item of which cell, how it scored

Each is a frozen dataclass, checked when made, and one line of JSON. Nothing here is parsed out of a name:
what tells two cells apart is a field of CellInfo, what belongs to an answer is a field of Row or one of its
marks.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from types import UnionType
from typing import Any, Self

#: Of the lines that are written; lines of other versions are refused.
VERSION = 1
#: How a question is answered: at once, or step by step.
ASKS = ("direct", "steps")
#: The adapter of a control that is no single adapter of the library: none at all, or random ones.
BASE, RANDOM = "base", "random"

Scalar = str | int | float | bool | None
#: Weights of the adapters: by place in the prompt or answer, then by adapter, one for each block.
Gates = Mapping[str, Mapping[str, tuple[float, ...]]]


class RowsError(ValueError):
    """Lines or files of measurements that cannot be used; the message says which, why and what to do."""


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN. Errors: RowsError on what JSON lacks."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RowsError(f"{value!r} is not JSON ({error}): use plain, finite values") from error


def content_hash(value: object) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


class _Line:
    """A frozen dataclass that is one line of JSON."""

    def to_dict(self) -> dict[str, object]:
        """The fields in order, as plain values."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]

    def to_json(self) -> str:
        """One line of JSON without its end. Errors: RowsError on a value JSON cannot hold."""
        content = {"version": VERSION, **self.to_dict()}
        try:
            return json.dumps(content, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise RowsError(f"{content} is not JSON ({error}): use plain, finite values") from error

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """What to_json() wrote. Errors: RowsError on anything else, and on lines of another version."""
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RowsError(f"no line of JSON ({error}): write it with {cls.__name__}.to_json()") from error
        return cls.from_dict(content)

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """From the parsed JSON of a line. Errors: as from_json."""
        if not isinstance(content, dict):
            raise RowsError(f"{content!r} is no {cls.__name__}: write it with {cls.__name__}.to_json()")
        content = dict(content)
        if (version := content.pop("version", None)) != VERSION:
            raise RowsError(
                f"a {cls.__name__} of version {version!r}: this code reads version {VERSION}; rows of "
                "earlier code are carried over by `python -m llm_experiments migrate`"
            )
        try:
            return cls(**content)
        except TypeError as error:
            allowed = ", ".join(f.name for f in fields(cls))  # type: ignore[arg-type]
            raise RowsError(f"not a {cls.__name__} ({error}): its fields are {allowed}") from error


@dataclass(frozen=True)
class Item(_Line):
    """One question in one wording.

    id: distinct in its task, "3+4/steps/0". cluster: what is resampled whole, such as the problem that
    several wordings ask about. group: which questions belong together ("sums", ..). ask: "direct" or "steps".
    target: the text that is right, None where nothing is. roles: the answer of each role that is there
    ("correct", "first step", ..). extra: what else the domain says of it (template, prompt, ..).
    Errors: RowsError on an empty name, an unknown `ask`, roles or extras that are no plain values.
    """

    id: str
    cluster: str
    group: str
    ask: str
    question: str
    target: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("id", "cluster", "group", "question"):
            _check_text(self, name)
        if self.ask not in ASKS:
            raise RowsError(f"ask {self.ask!r} of item '{self.id}' is unknown: use {' or '.join(ASKS)}")
        _check_mapping(self, "roles", str)
        _check_mapping(self, "extra", str | int | float | bool | None)


def items_hash(items: Iterable[Item]) -> str:
    """The hash of a task's items in their order, by which cells name them: of the bytes of JSON lines.

    Errors: RowsError where two items have one id.
    """
    items = list(items)
    ids: set[str] = set()
    for item in items:
        if item.id in ids:
            raise RowsError(f"two items are called '{item.id}': ids are distinct in their task")
        ids.add(item.id)
    lines = (json.dumps(item.to_dict(), separators=(",", ":"), ensure_ascii=False) for item in items)
    return hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()[:16]


def _outcome(**options: Any) -> Any:
    """A field that comes out of a measurement or says where it was made, and so tells no two cells apart."""
    return field(metadata={"outside key": True}, **options)


@dataclass(frozen=True)
class CellInfo(_Line):
    """What is constant while one library under one merge is asked the items of a task.

    domain, task, setting: what is asked about; spec_hash: of the composition that predicts it, None where
    there is none. items: items_hash of the questions. dataset, names: where the names come from, and which
    draw. base, digest, dtype: the base model's id, the hash of its content, what it computes in.
    library: names of the adapters in merge order, () for the base itself. adapters: the addresses of what
    trained them, in the same order; () where nobody says. rule, weights, options: the merge.
    chosen: what was chosen on development items, by name (temperature, ..). layers: which are adapted. seed:
    of the training, None for the base. split: of the items. variant: whatever else tells this cell from a
    plain one (initial_a, steps, gauge, relabelling, adapters, form, ..). control: None for a library that is
    merged, else "base", "random", or the name of an adapter that is asked alone.
    key: hash of all but adapters, chosen, spectral_gap and provenance, so that one cell of two runs has one
    key; in the line it is checked against the content.
    Errors: RowsError on empty names, values that are not plain and finite, numbers of weights or adapters
    that are not the library's.
    """

    domain: str
    task: str
    setting: Mapping[str, Scalar]
    spec_hash: str | None
    items: str
    dataset: str | None
    names: int | None
    base: str
    digest: str | None
    dtype: str | None
    library: tuple[str, ...]
    rule: str
    weights: tuple[float, ...] | None = None
    options: Mapping[str, Scalar] = field(default_factory=dict)
    chosen: Mapping[str, Scalar] = _outcome(default_factory=dict)
    layers: str | None = None
    seed: int | None = None
    split: str = "test"
    variant: Mapping[str, Scalar] = field(default_factory=dict)
    control: str | None = None
    adapters: tuple[str, ...] = _outcome(default=())
    spectral_gap: float | None = _outcome(default=None)
    provenance: Mapping[str, Any] = _outcome(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("domain", "task", "items", "base", "rule", "split"):
            _check_text(self, name)
        for name in ("setting", "options", "chosen", "variant"):
            _check_mapping(self, name, str | int | float | bool | None)
        for name in ("library", "adapters"):
            values = getattr(self, name)
            if isinstance(values, str) or not all(isinstance(value, str) and value for value in values):
                raise RowsError(f"{name} {values!r} of '{self.task}' must be names, in merge order")
            object.__setattr__(self, name, tuple(values))
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(map(float, self.weights)))
            if len(self.weights) != len(self.library) or not all(map(math.isfinite, self.weights)):
                raise RowsError(
                    f"weights {self.weights} of '{self.task}' must be {len(self.library)} finite numbers, "
                    f"one for each adapter of {'+'.join(self.library) or 'an empty library'}"
                )
        if self.adapters and len(self.adapters) != len(self.library):
            raise RowsError(
                f"{len(self.adapters)} adapters for the {len(self.library)} names of '{self.task}': give the "
                "address of each, or none"
            )
        if self.spectral_gap is not None and not math.isfinite(self.spectral_gap):
            raise RowsError(f"spectral_gap {self.spectral_gap} of '{self.task}': use None when there is none")
        if not isinstance(self.provenance, Mapping):
            raise RowsError(f"provenance {self.provenance!r} of '{self.task}' must be a mapping")

    @cached_property
    def key(self) -> str:
        """First 16 hex digits of the SHA-256 of the fields that tell cells apart."""
        return content_hash(self.identity())

    def identity(self) -> dict[str, Any]:
        """The fields that tell cells apart, as plain values."""
        inside = {f.name for f in fields(self) if not f.metadata.get("outside key")}
        return {name: value for name, value in super().to_dict().items() if name in inside}

    def to_dict(self) -> dict[str, object]:
        return {"key": self.key, **super().to_dict()}

    @classmethod
    def from_dict(cls, content: object) -> Self:
        if not isinstance(content, dict):
            return super().from_dict(content)
        content = dict(content)
        key = content.pop("key", None)
        info = super().from_dict(content)
        if key != info.key:
            raise RowsError(
                f"a cell of '{info.task}' is called {key!r}, its content gives {info.key}: the line was "
                "changed after it was written"
            )
        return info


@dataclass(frozen=True)
class Row(_Line):
    """One answer.

    cell, item: key of the CellInfo, id of the item. answer: which answer of the task it is, None where none
    is named. shares: probability of each outcome of the domain, which sum to 1. text: what was written.
    marks: what the scorer says besides, by name: bools, numbers, None where it cannot be said. logprobs: of
    candidate answers, by "role:answer", or by "place/role:answer" where an answer names several things; None
    where they were not scored. gates: the weights that a routed merge gave its adapters, by place and
    adapter, one number for each block of the model; None where it does not route. Not in a line without.
    Errors: RowsError on shares that are no distribution, and on numbers that are not finite.
    """

    cell: str
    item: str
    answer: str | None
    shares: Mapping[str, float]
    text: str | None = None
    marks: Mapping[str, bool | float | None] = field(default_factory=dict)
    logprobs: Mapping[str, float] | None = None
    gates: Gates | None = None

    def __post_init__(self) -> None:
        _check_text(self, "cell")
        _check_text(self, "item")
        _check_mapping(self, "shares", int | float)
        _check_mapping(self, "marks", bool | int | float | None)
        if self.logprobs is not None:
            _check_mapping(self, "logprobs", int | float)
        shares = self.shares.values()
        if not all(share >= 0 for share in shares) or not math.isclose(math.fsum(shares), 1, abs_tol=1e-9):
            raise RowsError(f"shares {dict(self.shares)} on '{self.item}' must be >= 0 and sum to 1")
        if self.gates is not None:
            object.__setattr__(self, "gates", _gates(self.gates, self.item))

    def to_dict(self) -> dict[str, Any]:
        fields = super().to_dict()
        if self.gates is None:
            del fields["gates"]
        return fields


def _gates(given: Any, item: str) -> Gates:
    """Gates as they are kept: plain mappings of tuples. Errors: RowsError on anything else."""
    try:
        found = {place: {a: tuple(map(float, w)) for a, w in on.items()} for place, on in given.items()}
        numbers = [w for on in found.values() for weights in on.values() for w in weights]
        names = [name for place, on in found.items() for name in (place, *on)]
        if all(map(math.isfinite, numbers)) and all(isinstance(name, str) for name in names):
            return found
    except (AttributeError, TypeError, ValueError):
        pass
    raise RowsError(
        f"gates {given!r} on '{item}' must be finite weights by block, by adapter, by place: "
        '{"answer": {"first": [0.5, ..], ..}, ..}'
    )


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _check_text(line: object, name: str) -> None:
    value = getattr(line, name)
    if not isinstance(value, str) or not value:
        raise RowsError(f"{name} {value!r} of a {type(line).__name__} must be a text that is not empty")


def _check_mapping(line: object, name: str, kinds: type | UnionType) -> None:
    """A mapping from texts to finite values of these kinds."""
    mapping = getattr(line, name)
    if not isinstance(mapping, Mapping):
        raise RowsError(f"{name} {mapping!r} of a {type(line).__name__} must be a mapping")
    for key, value in mapping.items():
        finite = not isinstance(value, float) or math.isfinite(value)
        if not isinstance(key, str) or not isinstance(value, kinds) or not finite:
            raise RowsError(
                f"{name} of a {type(line).__name__} has {key!r}: {value!r}; use plain, finite values"
            )
