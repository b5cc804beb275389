"""Records: one row for each question put to the merged toy model, with its provenance.

A file of records is JSON lines: UTF-8, one object a line.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from toytransformer.compositions.io import replace_file
from toytransformer.compositions.spec import DECODES, OUTCOMES
from toytransformer.compositions.worlds import SpecError, check_name


@dataclass(frozen=True)
class Record:
    """What the merged toy model answers to one question.

    composition, setting, spec_hash: which Composition.
    adapters, rule, weights, options: what was merged and how.
    regime: the scalars that say in which limit or at which size and seed; infinity is kept as "inf".
    group, prompt, decode, correct, bridge, old: the question, as in Question.
    answer: the entity answered, None when several tie or none is named.
    shares: probability of each of OUTCOMES. mixture: output coefficients by entity, perhaps only the largest.
    spectral_gap: of a routing rule's prototypes, None for the other rules.
    undetermined: why answer, shares and mixture are arbitrary, as where singular values tie; None elsewhere,
    and then no key of to_json().
    Errors: SpecError on shares that are not a distribution over OUTCOMES and on numbers that are not finite.
    """

    composition: str
    setting: Mapping[str, object]
    spec_hash: str
    adapters: tuple[str, ...]
    rule: str
    weights: tuple[float, ...] | None
    options: Mapping[str, object]
    regime: Mapping[str, object]
    group: str
    prompt: str
    decode: str
    correct: str | None
    bridge: str | None
    old: str | None
    answer: str | None
    shares: Mapping[str, float]
    mixture: Mapping[str, float] = field(default_factory=dict)
    spectral_gap: float | None = None
    provenance: Mapping[str, object] = field(default_factory=dict)
    undetermined: str | None = None

    def __post_init__(self) -> None:
        for name in ("composition", "spec_hash", "rule", "group", "prompt"):
            check_name(getattr(self, name), name)
        if self.decode not in DECODES:
            raise SpecError(f"decode {self.decode!r} is unknown: use one of {', '.join(DECODES)}")
        if unknown := set(self.shares) - set(OUTCOMES):
            raise SpecError(f"outcome {min(unknown)!r} in shares is unknown: use {', '.join(OUTCOMES)}")
        shares = self.shares.values()
        if not all(share >= 0 for share in shares) or not math.isclose(math.fsum(shares), 1, abs_tol=1e-9):
            raise SpecError(f"shares {dict(self.shares)} on '{self.prompt}' must be >= 0 and sum to 1")
        for entity, number in self.mixture.items():
            if not math.isfinite(number):
                raise SpecError(f"mixture of {entity!r} on '{self.prompt}' is {number}: keep finite ones")
        if self.spectral_gap is not None and not math.isfinite(self.spectral_gap):
            raise SpecError(
                f"spectral_gap on '{self.prompt}' is {self.spectral_gap}: use None when there is none"
            )
        finite = {name: "inf" if value == math.inf else value for name, value in self.regime.items()}
        object.__setattr__(self, "regime", finite)
        object.__setattr__(self, "adapters", tuple(self.adapters))
        object.__setattr__(self, "weights", None if self.weights is None else tuple(self.weights))

    def to_json(self) -> str:
        """One line of JSON, fields in order. Errors: SpecError on a value JSON cannot hold."""
        try:
            plain = asdict(self)
            if self.undetermined is None:
                del plain["undetermined"]
            return json.dumps(plain, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SpecError(f"record on '{self.prompt}' is not JSON ({error}): use plain values") from error

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """The record that to_json() wrote. Errors: SpecError on anything else."""
        try:
            return cls(**json.loads(text, parse_float=_finite, parse_constant=_finite))
        except SpecError:
            raise
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            allowed = ", ".join(f.name for f in fields(cls))
            raise SpecError(
                f"not a record ({error}): write it with Record.to_json(), fields {allowed}"
            ) from error


def _finite(text: str) -> float:
    """The number; NaN and infinities, which are no JSON, are refused, also where they are written 1e999."""
    if math.isfinite(number := float(text)):
        return number
    raise ValueError(f"{text} is no finite number")


def write_jsonl(path: str | os.PathLike, records: Iterable[Record]) -> None:
    """Write one record a line, all or nothing: `path` holds the old rows or all of the new ones."""
    replace_file(path, (record.to_json() + "\n" for record in records))


def read_jsonl(path: str | os.PathLike) -> list[Record]:
    """The records of a file, in order. Errors: SpecError naming file and line of a row that is no record."""
    records = []
    with Path(path).open(encoding="utf-8", newline="\n") as rows:
        for number, row in enumerate(rows, start=1):
            try:
                records.append(Record.from_json(row))
            except SpecError as error:
                raise SpecError(f"{path}, line {number}: {error}") from error
    return records
