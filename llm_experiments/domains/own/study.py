"""A study of one's own, written down in TOML: which base, which adapters, which questions, which merges.

    name = "homes-and-mentors"        # what tables call it
    base = "embedded"                 # a hub id, a folder or a .gguf file

    [questions]                       # JSON lines: question, answer [, adapter, group, cluster]
    asked = "questions.jsonl"
    dev = "dev.jsonl"                 # for routing rules: their temperature is chosen on these
    fit = "fit.jsonl"                 # for fitted rules: their weights are found on these
    reading = "exact"                 # or "contains", "final"

    [[adapters]]
    name = "homes"
    given = "adapters/homes"          # a folder, a file or a hub id

    [[adapters]]
    name = "mentors"
    trained = "mentors.jsonl"         # JSON lines: question, answer

    [training]                        # for those that are trained; all that is left out is the profile's
    steps = 200

    [[merges]]
    rule = "mean"

    [run]
    seeds = [0]
    controls = ["alone", "random"]    # beside the base, which is always asked

Files are looked for beside the study's own.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from llm_experiments.adapters.recipe import Training, TrainingError
from llm_experiments.domains.own import questions
from llm_experiments.domains.own.questions import Question
from llm_experiments.domains.own.scorer import READINGS
from llm_experiments.experiments.sizes import PROFILES, Profile
from results.rows import BASE, RANDOM
from toytransformer.compositions import SpecError
from toytransformer.compositions.io import read_plain
from toytransformer.compositions.spec import Merge
from toytransformer.merging import RuleError, check

#: Most lines that an adapter is trained on or a rule fitted to.
MOST = 100_000
#: What a study asks beside its merges and the base.
CONTROLS = ("alone", "random")
LONGEST_NAME = 80
_STRICT = ConfigDict(strict=True, extra="forbid")

Part = TypeVar("Part")


class StudyError(ValueError):
    """A study that cannot be run; the message names the file, the place in it and what to write there."""


@dataclass(frozen=True)
class Asked:
    """Files of questions. reading: one of scorer.READINGS."""

    __pydantic_config__ = _STRICT

    asked: str
    dev: str | None = None
    fit: str | None = None
    reading: str = "exact"


@dataclass(frozen=True)
class Adapter:
    """An adapter by name: one that is given, or one that is trained on a file."""

    __pydantic_config__ = _STRICT

    name: str
    given: str | None = None
    trained: str | None = None


@dataclass(frozen=True)
class MergeOf:
    """A merge of all adapters in their order, or of some."""

    __pydantic_config__ = _STRICT

    rule: str
    weights: list[float] | None = None
    options: dict[str, str | int | float | bool] = field(default_factory=dict)
    adapters: list[str] | None = None


@dataclass(frozen=True)
class Run:
    """Seeds of training and of what rules draw; controls."""

    __pydantic_config__ = _STRICT

    seeds: list[int] = field(default_factory=lambda: [0])
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))
    temperatures: list[float] | None = None


@dataclass(frozen=True)
class Written:
    """A study as it is written."""

    __pydantic_config__ = _STRICT

    name: str
    base: str
    questions: Asked
    adapters: list[Adapter]
    merges: list[MergeOf] = field(default_factory=list)
    revision: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    run: Run = field(default_factory=Run)


#: The tables of a study by their place in it; [[adapters]] and [[merges]] are lists of such.
TABLES: Mapping[str, type] = {
    "": Written,
    "questions": Asked,
    "adapters": Adapter,
    "merges": MergeOf,
    "run": Run,
}


@dataclass(frozen=True)
class Member:
    """An adapter of a study: where it is, or what it is trained on."""

    name: str
    given: str | None
    taught: tuple[Question, ...]


@dataclass(frozen=True)
class StudyFile:
    """A study with its files read and every name in it checked.

    merges: each with the names of the adapters that it is of. fit: empty where no rule is fitted.
    """

    file: Path
    name: str
    base: str
    revision: str | None
    profile: Profile
    asked: tuple[Question, ...]
    dev: tuple[Question, ...]
    fit: tuple[Question, ...]
    reading: str
    adapters: tuple[Member, ...]
    merges: tuple[tuple[Merge, tuple[str, ...]], ...]
    seeds: tuple[int, ...]
    controls: tuple[str, ...]

    @classmethod
    def read(cls, file: Path) -> StudyFile:
        """Errors: StudyError for what is written wrongly, QuestionsError for a file of questions."""
        return _Reader(file).study()


class _Reader:
    """Checks what is written in one file; every refusal names it."""

    def __init__(self, file: Path):
        self.file = file

    def study(self) -> StudyFile:
        written = self._written()
        names = self._names(written)
        if written.questions.reading not in READINGS:
            told = "; ".join(f"{name}: {what}" for name, what in READINGS.items())
            raise self._error(f"[questions] reading is {written.questions.reading!r}; use one of {told}")
        profile, merges = self._profile(written), self._merges(written, names)
        seeds, controls = self._seeds(written.run.seeds), self._controls(written.run.controls)
        adapters = tuple(self._member(one) for one in written.adapters)
        asked = self._questions("asked", written.questions.asked, names)
        return StudyFile(
            file=self.file,
            name=written.name,
            base=self._beside(written.base),
            revision=written.revision,
            profile=profile,
            asked=asked,
            dev=self._apart("dev", written.questions.dev, names, asked),
            fit=self._apart("fit", written.questions.fit, names, asked),
            reading=written.questions.reading,
            adapters=adapters,
            merges=merges,
            seeds=seeds,
            controls=controls,
        )

    def _error(self, what: str) -> StudyError:
        return StudyError(f"{self.file}: {what}")

    def _written(self) -> Written:
        try:
            content = json.dumps(tomllib.loads(read_plain(self.file).decode("utf-8-sig")))
        except TypeError as error:  # a date or a time
            raise self._error(f"a study has texts, numbers, true and false ({error})") from error
        except (ValueError, RecursionError) as error:
            raise self._error(f"this is no TOML ({error})") from error
        try:
            return TypeAdapter(Written).validate_json(content)
        except ValidationError as error:
            raise self._error(_told(error)) from error

    def _names(self, written: Written) -> tuple[str, ...]:
        names = tuple(one.name for one in written.adapters)
        if not names:
            raise self._error("[[adapters]]: there are none; name one at least, with given or trained")
        for what, name in (("name", written.name), *(("name of [[adapters]]", name) for name in names)):
            plain = name.isprintable() and name == name.strip() and 0 < len(name) <= LONGEST_NAME
            if not plain or set("+/\\,") & set(name) or name[0] == ".":
                raise self._error(
                    f"{what} is {name[:LONGEST_NAME]!r}; use 1 to {LONGEST_NAME} printable letters, none "
                    "of + / \\ and comma, no dot at the beginning and no space at the ends"
                )
        for name in names:
            if name in (BASE, RANDOM):
                raise self._error(f"[[adapters]] name {name!r} is what a control is called; use another")
            if names.count(name) > 1:
                raise self._error(f"[[adapters]]: two are called {name!r}; give each a name of its own")
        return names

    def _questions(
        self, part: str, given: str, names: tuple[str, ...], most: int = questions.MOST
    ) -> tuple[Question, ...]:
        return tuple(questions.read(self._file(f"[questions] {part}", given), names, most))

    def _apart(
        self, part: str, given: str | None, names: tuple[str, ...], asked: tuple[Question, ...]
    ) -> tuple[Question, ...]:
        """Questions that something is chosen or fitted on, none of which is asked."""
        found = self._questions(part, given, names, most=MOST) if given else ()
        if both := {one.question for one in found} & {one.question for one in asked}:
            raise self._error(
                f"[questions] {part}: {min(both)[:80]!r} is asked too; what is chosen or fitted on a "
                "question says nothing about it, so take it out of one of the two files"
            )
        return found

    def _file(self, what: str, given: str) -> Path:
        path = Path(self._beside(given))
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # a name too long, or with a zero byte
            pass
        raise self._error(f"{what}: there is no file {str(path)[:200]!r}; paths begin at the study's folder")

    def _beside(self, given: str) -> str:
        """A path as it is from here, where it is one beside the study; else what was given: a hub id."""
        try:
            path = self.file.parent / Path(given).expanduser()
            return str(path) if path.exists() else given
        except (RuntimeError, OSError, ValueError):
            return given

    def _member(self, one: Adapter) -> Member:
        if (one.given is None) == (one.trained is None):
            raise self._error(
                f"[[adapters]] {one.name!r} has {'neither' if one.given is None else 'both'} given and "
                "trained; write given = a folder, file or hub id, or trained = a file of JSON lines"
            )
        if one.given is not None:
            return Member(one.name, self._beside(one.given), ())
        file = self._file(f"[[adapters]] {one.name!r} trained", str(one.trained))
        return Member(one.name, None, tuple(questions.read(file, (one.name,), MOST)))

    def _profile(self, written: Written) -> Profile:
        """The recipe: a profile's, and what is said here in its place."""
        said = dict(written.training)
        named = said.pop("profile", "embedded" if written.base == "embedded" else "paper")
        if not isinstance(named, str) or named not in PROFILES:
            raise self._error(f"[training] profile is {named!r}; use one of {', '.join(PROFILES)}")
        if said and not any(one.trained for one in written.adapters):
            raise self._error("[training] is for adapters that are trained, and all are given; leave it out")
        allowed = [item.name for item in fields(Training)]
        if unknown := [key for key in said if key not in allowed]:
            raise self._error(f"[training]: {_unknown(unknown[0], ['profile', *allowed])}")
        profile = PROFILES[named]
        try:
            training = replace(profile.training, **said)
        except TrainingError as error:
            raise self._error(f"[training]: {error}") from error
        temperatures = profile.temperatures
        if written.run.temperatures is not None:
            temperatures = tuple(written.run.temperatures)
            if not temperatures or not all(0 < one < float("inf") for one in temperatures):
                raise self._error(
                    f"[run] temperatures are {list(temperatures)}; give numbers above 0, one at least"
                )
        return replace(profile, training=training, temperatures=temperatures)

    def _merges(self, written: Written, names: tuple[str, ...]) -> tuple[tuple[Merge, tuple[str, ...]], ...]:
        found: list[tuple[Merge, tuple[str, ...]]] = []
        for number, one in enumerate(written.merges, start=1):
            where = f"[[merges]] {number}, {one.rule!r}"
            of = names if one.adapters is None else tuple(one.adapters)
            if absent := [name for name in of if name not in names]:
                raise self._error(
                    f"{where}: there is no adapter {absent[0]!r}; it is one of {', '.join(names)}"
                )
            if not of or len(set(of)) < len(of):
                raise self._error(f"{where}: adapters are {list(of)}; name each once, one at least")
            weights = None if one.weights is None else tuple(one.weights)
            if weights is not None and len(weights) != len(of):
                raise self._error(
                    f"{where}: {len(weights)} weights for {len(of)} adapters ({', '.join(of)}); give one for "
                    "each"
                )
            try:
                merge = Merge(one.rule, weights, one.options)
                rule, _ = check(merge)
            except (RuleError, SpecError) as error:
                raise self._error(f"[[merges]] {number}: {error}") from error
            if rule.needs_data and written.questions.fit is None:
                raise self._error(
                    f'{where} is fitted on examples: name a file of them, [questions] fit = "fit.jsonl", '
                    "with other questions than are asked"
                )
            merge = replace(merge, rule=rule.name)
            if (merge, of) in found:
                raise self._error(f"{where}: the same merge stands there already; leave one of them out")
            found.append((merge, of))
        return tuple(found)

    def _seeds(self, seeds: list[int]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**31:
            raise self._error(f"[run] seeds are {seeds}; give at least one, each once, from 0 to {2**31 - 1}")
        return tuple(seeds)

    def _controls(self, controls: list[str]) -> tuple[str, ...]:
        if unknown := [name for name in controls if name not in CONTROLS]:
            raise self._error(
                f"[run] controls: there is no {unknown[0]!r}; they are {', '.join(CONTROLS)}, and the base "
                "is always asked"
            )
        return tuple(dict.fromkeys(controls))


def _told(error: ValidationError) -> str:
    """The first fault in words: where it stands, what is wrong, what may stand there."""
    first = error.errors()[0]
    table, *place = (
        first["loc"] if len(first["loc"]) > 1 and first["loc"][0] in TABLES else ("", *first["loc"])
    )
    where = f"[{table}]: " if table else ""
    if place and isinstance(place[0], int):
        where = f"[[{table}]] {place[0] + 1}: "
        del place[0]
    known = fields(TABLES[str(table)])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return where + _unknown(str(place[-1]), [item.name for item in known])
    if first["type"] in ("missing", "missing_argument"):
        needed = [item.name for item in known if item.default is item.default_factory is MISSING]
        return f"{where}{place[-1]} is missing; {', '.join(needed)} have to be there"
    named = ".".join(map(str, place)) or table
    return f"{where}{named} is {str(first['input'])[:80]!r}: {first['msg']}"


def _unknown(key: str, allowed: list[str]) -> str:
    return f"there is no key {key[:80]!r}; allowed are {', '.join(allowed)}"
