"""Templates of word problems, in the form of the published GSM-Symbolic ones: drawn from, and read back.

    {name,Ana} has {n,3} boxes of {m,4} pens.      a slot: a variable, and what stood there in the original
    #init:          - $n = range(2, 9)             what each variable is drawn from, $ before numbers
    #conditions:    - n * m < 20                   of all draws, those are kept that meet every condition
    #answer: n * m
    answer_annotated: {n} * {m} = <<{n}*{m}={n*m}>>{n*m} pens.  #### {n*m}

The published templates came without the generator and without their named sets: `words.toml` has ours.
Draws are independent and uniform, and are made anew until all conditions hold. A variable that a condition
gives by the others (x == a + b) is computed, which leaves the distribution as it is.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path
from random import Random
from typing import Any

from llm_experiments.domains.math.expressions import Drawn, Expression, expression, shown
from llm_experiments.domains.math.numbers import number_said
from llm_experiments.domains.task import TaskError

#: Draws after which a template counts as one that nothing satisfies.
TRIES = 200_000
_SLOT = re.compile(r"\{\s*(\w+)\s*,([^{}]*)\}")
_BRACES = re.compile(r"\{([^{}]*)\}")
_SENTENCE = re.compile(r"(?:\A|[.?!]\s+)\Z")


@dataclass(frozen=True)
class Problem:
    """A drawn problem. template: which one, "p2/7". solution: its worked text, which ends with "#### answer".

    values: numbers and texts by the template's variables.
    """

    template: str
    question: str
    solution: str
    answer: Fraction
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Template:
    """A template. drawn: by its variables, together where they are drawn together, from what.

    answer: what its solution ends with, or else what stands behind '#answer', which differs in a few.
    """

    name: str
    text: str
    drawn: tuple[tuple[tuple[str, ...], Expression], ...]
    conditions: tuple[Expression, ...]
    answer: Expression
    solution: str

    @cached_property
    def variables(self) -> tuple[str, ...]:
        return tuple(name for names, _ in self.drawn for name in names)

    @cached_property
    def given_by(self) -> dict[str, Expression]:
        """Variables that a condition gives by others, and by what."""
        found: dict[str, Expression] = {}
        alone = {
            names[0] for names, _ in self.drawn if len(names) == 1 and _distinct(self._items(names[0])[1])
        }
        for condition in self.conditions:
            tree = condition.tree
            if isinstance(tree, ast.Compare) and len(tree.ops) == 1 and isinstance(tree.ops[0], ast.Eq):
                for one, other in ((tree.left, tree.comparators[0]), (tree.comparators[0], tree.left)):
                    if isinstance(one, ast.Name) and one.id in alone - found.keys():
                        by = expression(ast.unparse(other))
                        used = {name for each in found.values() for name in each.names}
                        if by.names <= set(self.variables) - {one.id} - found.keys() and one.id not in used:
                            found[one.id] = by
                            break
        return found

    @cached_property
    def _order(self) -> list[tuple[tuple[str, ...], Expression, list[Expression]]]:
        """The draws, given variables last, each with the conditions that can be judged after it."""
        drawn = sorted(self.drawn, key=lambda one: one[0][0] in self.given_by)
        left, known, order = list(self.conditions), set(sets()) - set(self.variables), []
        for names, pool in drawn:
            known |= set(names)
            ready = [condition for condition in left if condition.names <= known]
            left = [condition for condition in left if condition not in ready]
            order.append((names, pool, ready))
        if left:
            unknown = ", ".join(sorted(left[0].names - known))
            raise TaskError(f"template {self.name}: {left[0].source!r} names {unknown}, which nothing draws")
        return order

    @cached_property
    def _pools(self) -> dict[str, list[Any]]:
        """What a variable is drawn from, by its name, where that depends on no other variable."""
        return {
            names[0]: self._pool(pool, {})
            for names, pool in self.drawn
            if pool.names <= sets().keys() - set(self.variables)
        }

    def _pool(self, pool: Expression, values: Mapping[str, Any]) -> list[Any]:
        found = pool({**sets(), **values})
        if isinstance(found, Drawn):
            return self._pool_of(found)
        if isinstance(found, list | tuple) and found:
            return list(found)
        raise TaskError(f"template {self.name}: {pool.source!r} gives nothing to draw from")

    def _pool_of(self, found: Drawn) -> list[Any]:
        """One entry for each draw: of a draw of several, the pool itself once more at every draw."""
        if not found.pool or (found.count or 1) > len(found.pool):
            raise TaskError(f"template {self.name}: {found.count} cannot be drawn from {len(found.pool)}")
        return [found] if found.count is not None else found.pool

    def draw(self, random: Random) -> dict[str, tuple[str, Any]]:
        """By variable its text and its value. Errors: TaskError where nothing satisfies the conditions."""
        for _ in range(TRIES):
            drawn: dict[str, tuple[str, Any]] = {}
            values: dict[str, Any] = dict(sets())
            if all(self._drawn(one, random, drawn, values) for one in self._order):
                return drawn
        raise TaskError(
            f"template {self.name}: none of {TRIES} draws meets its conditions "
            f"({'; '.join(condition.source for condition in self.conditions)}): widen its ranges"
        )

    def _drawn(
        self,
        one: tuple[tuple[str, ...], Expression, list[Expression]],
        random: Random,
        drawn: dict[str, tuple[str, Any]],
        values: dict[str, Any],
    ) -> bool:
        """Draw a variable, or several that are drawn together; whether the conditions still hold."""
        names, source, conditions = one
        pool = self._pools.get(names[0]) or self._pool(source, values)
        if names[0] in self.given_by:
            wanted = self.given_by[names[0]](values)
            items = [item for item in pool if _value(item) == wanted][:1]
        elif isinstance(pool[0], Drawn):
            items = _several(pool[0], random)
        else:
            items = [random.choice(pool)]
        if len(items) != len(names):
            if names[0] in self.given_by:
                return False
            raise TaskError(f"template {self.name}: {len(items)} drawn for {', '.join(names)}: draw as many")
        for name, item in zip(names, items, strict=True):
            drawn[name] = (_text(item), _value(item))
            values[name] = _value(item)
        return all(condition(values) for condition in conditions)

    def problem(self, random: Random) -> Problem:
        """A problem. Errors: TaskError as `draw`, and where the solution does not end with the answer."""
        return self.told(self.draw(random))

    def told(self, drawn: Mapping[str, tuple[str, Any]]) -> Problem:
        """The problem of these draws."""
        values = {**sets(), **{name: value for name, (_, value) in drawn.items()}}
        solution = re.sub(
            r"<<.*?>>", "", _BRACES.sub(lambda m: shown(expression(m[1])(values)), self.solution)
        )
        body, marker, last = solution.rpartition("####")
        if not marker:
            raise TaskError(f"template {self.name}: its solution does not end with '#### answer'")
        if (answer := number_said(last)) is None:
            raise TaskError(
                f"template {self.name}: its solution ends with {last.strip()!r}, which is no number"
            )
        worked = f"{body.strip()}\n#### {shown(answer)}"
        plain = {name: value for name, (_, value) in drawn.items()}
        return Problem(self.name, self._question(drawn), worked, answer, plain)

    def _question(self, drawn: Mapping[str, tuple[str, Any]]) -> str:
        parts, end = [], 0
        for slot in _SLOT.finditer(self.text):
            parts.append(self.text[end : slot.start()])
            text = drawn[slot[1]][0]
            before = "".join(parts)
            parts.append(text[:1].upper() + text[1:] if _SENTENCE.search(before) else text)
            end = slot.end()
        return re.sub(r"[ \t]+", " ", "".join([*parts, self.text[end:]])).strip()

    def problems(self, count: int, seed: object) -> list[Problem]:
        """So many problems, no question twice. Errors: TaskError where there are fewer."""
        random = Random(f"{self.name}/{seed}")
        found: dict[str, Problem] = {}
        for _ in range(50 * count):
            problem = self.problem(random)
            found.setdefault(problem.question, problem)
            if len(found) == count:
                return list(found.values())
        raise TaskError(
            f"template {self.name}: {len(found)} problems differ, {count} are wanted: widen its ranges"
        )

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """What its questions look like: a group for each variable, the same text wherever it stands again."""
        pattern, end, seen = "", 0, set()
        for slot in _SLOT.finditer(self.text):
            pattern += _literal(self.text[end : slot.start()])
            end, name = slot.end(), slot[1]
            if name in seen:
                pattern += f"(?i:(?P={name}))"
            else:
                seen.add(name)
                pattern += f"(?P<{name}>{self._looks(name)})"
        return re.compile(pattern + _literal(self.text[end:]).rstrip("\\s+") + r"\s*")

    def _looks(self, variable: str) -> str:
        """What may stand in a variable's slot: one of its texts, or anything of its kind from a named set."""
        source, items = self._items(variable)
        if source.names & sets().keys():
            numbers = isinstance(items[0], tuple)
            return r"[\w./-]+(?: [a-z]+)?" if numbers else r"[^\s\d,.?!](?:[^\d,.?!]*?[^\s\d,.?!])??"
        if not items or isinstance(items[0], Fraction):
            return r"\d[\d,]*(?:\.\d+)?"
        if any(isinstance(item, tuple) and number_said(_text(item)) == item[1] for item in items):
            return r"[\w-]+(?: [a-z]+)?"
        texts = sorted({_text(item) for item in items}, key=len, reverse=True)
        return "(?i:" + "|".join(map(re.escape, texts)) + ")"

    def _items(self, variable: str) -> tuple[Expression, list[Any]]:
        """What a variable is drawn from: as it is written, and item by item; none where others say which."""
        ((names, source),) = [one for one in self.drawn if variable in one[0]]
        pool = self._pools.get(names[0], [])
        return source, pool[0].pool if pool and isinstance(pool[0], Drawn) else pool

    def fit(self, question: str) -> dict[str, Any] | None:
        """The values in a question of this template, with those that follow from them; None where it is none.

        A variable that is in no slot is what all conditions allow, where that is one value.
        """
        matched = self._pattern.fullmatch(" ".join(question.split()))
        if matched is None:
            return None
        values: dict[str, Any] = {}
        for names, _ in self.drawn:
            for name in names:
                if name in matched.groupdict():
                    value = self._read(name, matched[name])
                    if value is None:
                        return None
                    values[name] = value
        return self._completed(values)

    def _read(self, variable: str, text: str) -> Any:
        """The value of a text in a slot: that of the pool's item of that text, else the number it says."""
        _, items = self._items(variable)
        named = [item for item in items if _text(item).casefold() == text.casefold()]
        if named:
            return _value(named[0])
        number = bool(items) and isinstance(_value(items[0]), Fraction)
        return number_said(text) if number or not items else text

    def _completed(self, values: dict[str, Any]) -> dict[str, Any] | None:
        hidden = [name for name in self.variables if name not in values]
        needed = set().union(*(condition.names for condition in self.conditions), self.answer.names)
        needed |= {name for part in _BRACES.findall(self.solution) for name in expression(part).names}
        hidden = [name for name in hidden if name in needed and name in self._pools]
        if not hidden:
            return values
        fitting = []
        for items in itertools.product(*(self._pools[name] for name in hidden)):
            whole = {**values, **{name: _value(item) for name, item in zip(hidden, items, strict=True)}}
            if all(condition({**sets(), **whole}) for condition in self.conditions):
                fitting.append(whole)
        answers = {self.answer({**sets(), **whole}) for whole in fitting}
        return fitting[0] if len(answers) == 1 else None

    def meets(self, values: Mapping[str, Any]) -> bool:
        """Whether values meet all conditions."""
        return all(condition({**sets(), **values}) for condition in self.conditions)


def _several(of: Drawn, random: Random) -> list[Any]:
    count = of.count or 1
    if not of.in_turn:
        return random.sample(of.pool, count)
    start = random.randrange(len(of.pool))
    return [of.pool[(start + i) % len(of.pool)] for i in range(count)]


def _distinct(items: list[Any]) -> bool:
    """Whether every item has a value of its own, so that a value is one draw."""
    return bool(items) and len({_value(item) for item in items}) == len(items)


def _text(item: Any) -> str:
    return shown(item[0] if isinstance(item, tuple) else item)


def _value(item: Any) -> Any:
    return Fraction(item[1]) if isinstance(item, tuple) else item


def _literal(text: str) -> str:
    """A template's own words, any white space between them."""
    return r"\s+".join(re.escape(word) for word in re.split(r"\s+", text))


@cache
def sets() -> Mapping[str, list[Any]]:
    """The named sets: texts, or texts with the numbers they say."""
    told = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
    texts: dict[str, list[Any]] = dict(told["texts"])
    texts["names"] = [*texts["names_female"], *texts["names_male"]]
    numbers = {name: [(text, Fraction(n)) for text, n in pairs] for name, pairs in told["numbers"].items()}
    numbers["fraction_alnum"] = [*numbers["fraction_nums"], *numbers["fractions"]]
    return {**texts, **numbers}


def template(name: str, question: str, solution: str) -> Template:
    """A template from its annotated question and solution. Errors: TaskError, with its name."""
    text, _, rest = question.partition("#init:")
    setting, _, rest = rest.partition("#conditions:")
    wanted, marker, answer = (rest or setting).rpartition("#answer")
    if not marker:
        raise TaskError(f"template {name}: no '#answer' follows its question, '#init:' and '#conditions:'")
    setting = setting if rest else wanted
    conditions = wanted if rest else ""
    try:
        drawn: dict[tuple[str, ...], Expression] = {}
        for line in _lines(setting):
            names, equals, source = line.partition("=")
            if not equals:
                raise TaskError(f"{line!r} draws nothing: write 'x = range(2, 9)'")
            drawn[tuple(part.strip(" $") for part in names.split(","))] = expression(source)
        read = Template(
            name,
            text.strip(),
            tuple(drawn.items()),
            tuple(expression(line) for line in _lines(conditions)),
            _ending(solution) or expression(answer.strip(" :=${}\n")),
            solution,
        )
        known = set(read.variables)
        for slot in _SLOT.finditer(text):
            if slot[1] not in known:
                raise TaskError(f"its slot {slot[1]!r} is drawn from nothing: add a line to '#init:'")
    except TaskError as error:
        raise TaskError(f"template {name}: {error}") from error
    return read


def _ending(solution: str) -> Expression | None:
    """What a solution ends with, "#### {answer}": where '#answer' differs, the published rows have this."""
    ends = re.fullmatch(r"\s*\{([^{}]*)\}\s*", solution.rpartition("####")[2])
    return None if ends is None else expression(ends[1])


def _lines(text: str) -> Iterator[str]:
    for line in text.strip().splitlines():
        if line.strip():
            yield line.strip().removeprefix("-").strip()


def read_folder(folder: Path, name: str) -> list[Template]:
    """The templates of a folder: JSON files with question_annotated and answer_annotated, by name.

    name: what their level is called. Errors: TaskError where there are none, or one that cannot be read.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise TaskError(f"{folder} has no templates: give the folder of the JSON files of one level")
    return [_of_file(file, name) for file in files]


def _of_file(file: Path, level: str) -> Template:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        question, solution = told["question_annotated"], told["answer_annotated"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(
            f"{file} is no template ({type(error).__name__}: {error}): it is JSON with "
            "question_annotated and answer_annotated"
        ) from error
    number = file.stem.lstrip("0") or "0"
    return template(f"{level}/{number}", question, solution)


@dataclass(frozen=True)
class Checked:
    """What a check of templates against their generated problems found.

    fitting: questions that one template fits. answered: of those, from whose values the answer comes out.
    meeting: of those, whose values meet all conditions. off: what does not, a line each.
    """

    rows: int
    fitting: int
    answered: int
    meeting: int
    off: tuple[str, ...]


def check(templates: Sequence[Template], rows: Sequence[Mapping[str, Any]]) -> Checked:
    """Read the values off generated problems and answer them anew.

    rows: with id, the template's number; question; answer, which ends with "#### number".
    """
    by_number = {one.name.rpartition("/")[2]: one for one in templates}
    fitting = answered = meeting = 0
    off = []
    for row in rows:
        one = by_number.get(str(row["id"]))
        values = None if one is None else one.fit(row["question"])
        if one is None or values is None:
            off.append(f"{row['id']}/{row['instance']}: its question does not fit the template")
            continue
        fitting += 1
        wanted = number_said(str(row["answer"]).rpartition("####")[2])
        found = one.answer({**sets(), **values})
        answered += found == wanted
        meeting += one.meets(values)
        if found != wanted:
            off.append(f"{row['id']}/{row['instance']}: {shown(found)}, not {wanted and shown(wanted)}")
        elif not one.meets(values):
            broken = next(c.source for c in one.conditions if not c({**sets(), **values}))
            off.append(f"{row['id']}/{row['instance']}: its values do not meet {broken}")
    return Checked(len(rows), fitting, answered, meeting, tuple(off))
