"""Problems of two easier levels taught, a harder level asked: main and P1, then P2, and other ladders."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from llm_experiments.domains.math.data import INSTANCES, SOURCES, Worked, problems
from llm_experiments.domains.math.expressions import shown
from llm_experiments.domains.math.scorer import results
from llm_experiments.domains.math.sizes import SIZES
from llm_experiments.domains.task import (
    Example,
    Inputs,
    Task,
    TaskError,
    TrainingSet,
    domain,
    keep_examples,
    keep_items,
)
from llm_experiments.experiments.parts import JOINT
from llm_experiments.scoring.programs import sandbox
from results.rows import Item

#: How solutions are asked for and taught: in words, or as a program.
FORMS = ("cot", "tir")
#: Spare problems of a template, for development and to check what was learned: 5 each, as in the paper.
SPARE = 10


@domain(
    "math",
    about="harder word problems from adapters that were taught easier ones: GSM-Symbolic, GSM8K, our own",
    small={"source": "ladder", "templates": 3, "train": 2, "own": 2, "dev": 2},
    sizes=SIZES,
    sources=SOURCES,
    counted=("code", "steps_found"),
)
def math(
    inputs: Inputs,
    *,
    source: str = "ladder",
    taught: Sequence[str] | None = None,
    asked: str | None = None,
    form: str = "cot",
    shots: int = 0,
    run: bool | None = None,
    templates: int | None = None,
    train: int = 5,
    per_template: int = 1,
    own: int = 10,
    dev: int = 10,
    names: int = 0,
) -> Task:
    """Levels taught and a level asked. taught, asked: of SOURCES; by default the two easiest and the next.

    form: of FORMS. shots: 0 or 8 solved problems before the question asked; adapters are trained without.
    run: whether programs are run or only read, of tir alone; None where there is a sandbox.
    templates, train, per_template, own, dev: as in sizes.Size (asked: per_template). names: which draw of
    problems. Roles: correct. Extra: template; steps, the results of the solution's own calculations.
    Errors: TaskError as data.problems, and on unknown forms and shots.
    """
    if form not in FORMS or shots not in (0, len(_told()["examples"]["solved"])) or (shots and form != "cot"):
        raise TaskError(f"form {form!r} with {shots} shots: choose cot with 0 or 8 shots, or tir with none")
    easier = tuple(SOURCES.get(source, ()))
    taught = tuple(easier[:2] if taught is None else taught)
    asked = easier[min(2, len(easier) - 1)] if asked is None and easier else asked or ""
    programs = form == "tir"
    each = train + SPARE
    pools = {
        level: problems(source, level, each=each, seed=names, templates=templates, programs=programs)
        for level in taught
    }
    tested = problems(source, asked, each=per_template, seed=names, templates=templates, programs=programs)
    plain = templates if templates is not None else INSTANCES
    splits = {level: _split(pool, train, own, plain) for level, pool in pools.items()}
    lessons = {level: split[0] for level, split in splits.items()}
    checks = {level: split[1] for level, split in splits.items()}
    run = programs and (sandbox() is not None if run is None else run)
    context = inputs.add_input([{"run": True} if run else {}])
    chosen_on = list(_turns(split[2] for split in splits.values()))[:dev]
    sets = {level: ([*lessons[level]], [*checks[level]]) for level in taught}
    if len(taught) > 1:
        sets[JOINT] = ([*chain(*lessons.values())], [*chain(*checks.values())])
    tests = list(chain(*tested.values()))[: plain * per_template]
    for level, chosen in (*lessons.items(), (asked, tests)):
        if not chosen:
            raise TaskError(f"{source} has no problems of level {level!r} here: give the whole published set")
    return Task(
        domain="math",
        name=f"{SOURCES[source][asked]}, {shots}-shot {form}",
        scorer="numbers",
        items=keep_items(inputs, (_item(one, form, shots) for one in tests)),
        dev=keep_items(inputs, (_item(one, form) for one in chosen_on)) if chosen_on else None,
        training={
            name: TrainingSet(
                name,
                keep_examples(inputs, (Example(_asked(one, form), _answer(one, form)) for one in lesson)),
                keep_items(inputs, (_item(one, form) for one in check)),
                context,
            )
            for name, (lesson, check) in sets.items()
        },
        context=context,
        dataset=source,
        names=names,
        setting={
            "form": form,
            "shots": shots,
            **({"programs": "run" if run else "read"} if programs else {}),
        },
        chosen_by="problems of the taught levels",
    )


def _split(
    pool: Mapping[str, list[Worked]], train: int, own: int, templates: int
) -> tuple[list[Worked], list[Worked], list[Worked]]:
    """Problems to train on, to check that, and to choose on, the templates in turn.

    Of single problems, GSM8K's, the last ones are spared first.
    """
    if all(len(rows) == 1 for rows in pool.values()):
        rows = [row for (row,) in pool.values()]
        spare = min(2 * own, len(rows) // 2)
        rest, spared = rows[: len(rows) - spare], rows[len(rows) - spare :]
        return rest[: train * templates], spared[: spare // 2], spared[spare // 2 :]
    taught = [row for rows in pool.values() for row in rows[:train]]
    spared = list(_turns(rows[train:] for rows in pool.values()))
    half = len(pool) * (SPARE // 2)
    return taught, spared[half:][:own], spared[:half]


def _turns(lists: Iterable[Sequence[Any]]) -> Iterable[Any]:
    """One of each, then the next of each, .."""
    return (one for several in zip_longest(*lists) for one in several if one is not None)


def _item(one: Worked, form: str, shots: int = 0) -> Item:
    return Item(
        id=one.id,
        cluster=one.template,
        group="problems",
        ask="steps",
        question=_asked(one, form, shots),
        target=_answer(one, form),
        roles={"correct": shown(one.answer)},
        extra={"template": one.template, "steps": " ".join(map(str, results(one.solution)))},
    )


def _asked(one: Worked, form: str, shots: int = 0) -> str:
    told = _told()
    if not shots:
        return told[form]["ask"].format(question=one.question)
    before = "\n\n".join(told["examples"]["each"].format(**solved) for solved in told["examples"]["solved"])
    return told["examples"]["last"].format(examples=before, question=one.question)


def _answer(one: Worked, form: str) -> str:
    return _told()[form]["answer"].format(
        solution=one.solution, program=one.program, result=shown(one.answer)
    )


@cache
def _told() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("prompts.toml").read_text(encoding="utf-8"))
