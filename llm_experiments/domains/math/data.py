"""Problems by level and template: drawn from templates, or read from the published sets.

    source         levels                  from
    ladder         p0, p1, p2              templates of our own
    gsm-symbolic   main, p1, p2            apple/GSM-Symbolic, or the published templates
    gsm8k          two, three, four        openai/gsm8k by the number of steps; four has four and more
                   all                     the same, unsorted

The published sets are never copied here. They are taken from the folder or file that LORA_LIMITS_GSM_SYMBOLIC
or LORA_LIMITS_GSM8K names, as JSON lines or Parquet (main/test.jsonl, main.jsonl, ..), or else from the hub.
A folder with templates (symbolic, p1, p2, of JSON files) in place of rows has its problems drawn from them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from llm_experiments.domains.math.ladder import LEVELS, ladder
from llm_experiments.domains.math.numbers import number_said
from llm_experiments.domains.math.programs import program
from llm_experiments.domains.math.templates import Template, read_folder
from llm_experiments.domains.published import Published
from llm_experiments.domains.task import TaskError

#: Where a published set is on the hub, and the variable of the environment that names a copy of it.
HUB = {"gsm-symbolic": "apple/GSM-Symbolic", "gsm8k": "openai/gsm8k"}
VARIABLE = {"gsm-symbolic": "LORA_LIMITS_GSM_SYMBOLIC", "gsm8k": "LORA_LIMITS_GSM8K"}
#: The levels of each source, the easiest first, and what the paper calls them.
SOURCES: Mapping[str, Mapping[str, str]] = {
    "ladder": {level: f"own-{level}" for level in LEVELS},
    "gsm-symbolic": {"main": "GSM-Symbolic", "p1": "GSM-P1", "p2": "GSM-P2"},
    "gsm8k": {"two": "GSM8K-2", "three": "GSM8K-3", "four": "GSM8K-4+", "all": "GSM8K"},
}
#: Rows a template has in the published set.
INSTANCES = 50
_ANNOTATION = re.compile(r"<<.*?>>")


@dataclass(frozen=True)
class Worked:
    """A problem with its solution. template: the family it is of, or the problem itself where it is of none.

    program: its solution as a program, None where no template says one.
    """

    id: str
    template: str
    question: str
    solution: str
    answer: Fraction
    program: str | None = None


def problems(
    source: str, level: str, *, each: int, seed: int, templates: int | None = None, programs: bool = False
) -> dict[str, list[Worked]]:
    """By template so many problems, in an order that the seed draws; of GSM8K each problem by itself.

    templates: only so many of them. programs: whether solutions are wanted as programs, too.
    Errors: TaskError where the set is not here, has too few, or has no templates to make programs from.
    """
    if source not in SOURCES or level not in SOURCES[source]:
        known = "; ".join(f"{name}: {', '.join(levels)}" for name, levels in SOURCES.items())
        raise TaskError(f"there are no problems {source!r}, {level!r}: choose of {known}")
    paths = tuple(os.environ.get(variable) for variable in VARIABLE.values())
    return _read_once(source, level, each, seed, templates, programs, paths)


@cache
def _read_once(
    source: str,
    level: str,
    each: int,
    seed: int,
    templates: int | None,
    programs: bool,
    paths: tuple[str | None, ...],
) -> dict[str, list[Worked]]:
    """The problems, once for each copy of the sets that the environment names."""
    if source == "ladder":
        chosen = ladder()[level][:templates]
        return {one.name.partition("/")[2]: _drawn(one, each, seed, programs) for one in chosen}
    if source == "gsm8k":
        if programs:
            raise TaskError("GSM8K has no templates to make programs from: take ladder or gsm-symbolic")
        return _shuffled_apart(_gsm8k(level), seed)
    return _gsm_symbolic(level, each, seed, templates, programs)


def _drawn(one: Template, count: int, seed: object, programs: bool) -> list[Worked]:
    level, _, name = one.name.partition("/")
    return [
        Worked(
            f"{level}/{name}/{number}",
            name,
            drawn.question,
            drawn.solution,
            drawn.answer,
            program(one, drawn.values) if programs else None,
        )
        for number, drawn in enumerate(one.problems(count, seed))
    ]


def _gsm_symbolic(
    level: str, each: int, seed: int, templates: int | None, programs: bool
) -> dict[str, list[Worked]]:
    given, drawn = os.environ.get(VARIABLE["gsm-symbolic"], ""), published_templates(level)
    of_level = published("gsm-symbolic", level)
    if drawn and not any(any(Path(given).glob(pattern)) for pattern in of_level.files):
        return {one.name.partition("/")[2]: _drawn(one, each, seed, programs) for one in drawn[:templates]}
    if programs and not drawn:
        raise TaskError(
            f"programs are made from the published templates, which are not beside the rows of {level}: put "
            "their folders symbolic, p1 and p2 into the folder that "
            f"{VARIABLE['gsm-symbolic']} names"
        )
    by_template: dict[str, list[Worked]] = {}
    for row in of_level.rows():
        name = str(_field(row, "id"))
        by_template.setdefault(name, []).append(
            _worked(row, f"{level}/{name}/{_field(row, 'instance')}", name)
        )
    chosen = dict(sorted(by_template.items(), key=lambda one: (len(one[0]), one[0]))[:templates])
    found = {}
    for name, of_one in chosen.items():
        Random(f"{level}/{name}/{seed}").shuffle(of_one)
        if len(of_one) < each:
            raise TaskError(
                f"template {level}/{name} has {len(of_one)} rows, {each} are wanted: give a whole set"
            )
        found[name] = of_one[:each]
    if programs:
        by_name = {one.name.partition("/")[2]: one for one in drawn}
        found = {name: [_programmed(one, by_name.get(name)) for one in rows] for name, rows in found.items()}
    return found


def _programmed(one: Worked, of: Template | None) -> Worked:
    values = None if of is None else of.fit(one.question)
    if of is None or values is None:
        raise TaskError(
            f"{one.id}: its question fits no template beside the rows: give those it was made from"
        )
    return Worked(one.id, one.template, one.question, one.solution, one.answer, program(of, values))


def _gsm8k(level: str) -> list[Worked]:
    rows = published("gsm8k", "main").rows()
    wanted = {"two": (2,), "three": (3,), "four": range(4, 100), "all": range(100)}[level]
    chosen = []
    for number, row in enumerate(rows):
        if len(_ANNOTATION.findall(str(_field(row, "answer")))) in wanted:
            chosen.append(_worked(row, f"gsm8k/{number}", str(number)))
    return chosen


def _shuffled_apart(rows: Sequence[Worked], seed: int) -> dict[str, list[Worked]]:
    mixed = list(rows)
    Random(f"gsm8k/{seed}").shuffle(mixed)
    return {one.template: [one] for one in mixed}


def _worked(row: Mapping[str, Any], called: str, template: str) -> Worked:
    solution, marker, last = _ANNOTATION.sub("", str(_field(row, "answer"))).rpartition("####")
    answer = number_said(last)
    if not marker or answer is None:
        raise TaskError(f"{called}: its answer does not end with '#### number': give the published rows")
    worked = f"{solution.strip()}\n#### {last.strip()}"
    return Worked(called, template, str(_field(row, "question")), worked, answer)


def _field(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise TaskError(f"a row has {', '.join(row)}, but no {name!r}: give the published rows")
    return row[name]


def published(source: str, level: str) -> Published:
    """The rows of a level."""
    files = (f"{level}.jsonl", f"{level}.parquet", f"{level}/*test*.jsonl", f"{level}/*test*.parquet")
    return Published(HUB[source], VARIABLE[source], files)


def published_templates(level: str) -> list[Template]:
    """The published templates of a level in the folder that the environment names, none without."""
    given = os.environ.get(VARIABLE["gsm-symbolic"])
    folder = Path(given or ".") / {"main": "symbolic"}.get(level, level)
    return read_templates(folder, level) if given and any(folder.glob("*.json")) else []


@cache
def read_templates(folder: Path, level: str) -> list[Template]:
    """The templates of a folder, read once."""
    return read_folder(folder, level)
