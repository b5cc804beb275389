"""Expressions of templates, computed exactly: `(total - n) * p / 100`, `sample(names, 2)`, `is_int(k)`.

They are Python's syntax with a fixed list of functions, and come from files that anybody wrote: only the
kinds of nodes in NODES are accepted, every number is a `Fraction`, and nothing but the given names is
reached.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import CodeType
from typing import Any

from llm_experiments.domains.math.numbers import in_words
from llm_experiments.domains.task import TaskError

#: What an expression may be built of.
NODES = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.Tuple, ast.List),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow),
    *(ast.UnaryOp, ast.USub, ast.UAdd, ast.Not, ast.BoolOp, ast.And, ast.Or, ast.IfExp),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn),
    *(ast.Subscript, ast.Slice),
)
#: Largest exponent, longest list.
EXPONENT, LENGTH = 8, 10**6


@dataclass(frozen=True)
class Expression:
    """A checked expression: its source, the names in it that are no functions, and how to compute it."""

    source: str
    names: frozenset[str]
    tree: ast.expr
    code: CodeType

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Its value. values: what its names stand for, numbers as Fractions. Errors: TaskError."""
        try:
            return eval(self.code, KNOWN, values)
        except TaskError:
            raise
        except Exception as error:  # whatever an expression may raise
            raise TaskError(f"cannot compute {self.source!r} ({type(error).__name__}: {error})") from error


def expression(source: str) -> Expression:
    """Read an expression. Errors: TaskError on what is no expression, or none of these kinds."""
    source = source.strip().replace("np.random.", "").replace("np.", "")
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError) as error:
        raise TaskError(f"{source!r} is no expression ({error}): correct the template") from error
    for node in ast.walk(tree):
        if not isinstance(node, NODES) or (isinstance(node, ast.Name) and node.id.startswith("_")):
            raise TaskError(
                f"{source!r} has {ast.unparse(node)!r}, which templates may not have: they compute with "
                "numbers, names and the functions " + ", ".join(FUNCTIONS)
            )
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS):
            raise TaskError(
                f"{source!r} calls {ast.unparse(node.func)!r}: the functions of templates are "
                + ", ".join(FUNCTIONS)
            )
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(FUNCTIONS)
    exact = ast.fix_missing_locations(ast.Expression(_Exact().visit(ast.parse(source, mode="eval").body)))
    return Expression(source, frozenset(names), tree.body, compile(exact, "<template>", "eval"))


class _Exact(ast.NodeTransformer):
    """Numbers as Fractions; division, products and powers as functions that keep them so."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, int | float) and not isinstance(node.value, bool):
            return _call("_number", ast.Constant(str(node.value)))
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        left, right = self.visit(node.left), self.visit(node.right)
        named = {ast.FloorDiv: "_floor", ast.Mult: "_times", ast.Pow: "_power", ast.Div: "_over"}
        if type(node.op) in named:
            return _call(named[type(node.op)], left, right)
        return ast.BinOp(left, node.op, right)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        return ast.Subscript(_call("_parts", self.visit(node.value)), node.slice, node.ctx)


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _parts(value: Any) -> Sequence[Any]:
    """What a subscript takes from: a list, or of a number that has a name, (name, number)."""
    return value if isinstance(value, list | tuple) else (value, value)


def _times(left: Any, right: Any) -> Any:
    if isinstance(left, list):
        return left  # repeated: the same draw
    return left * right


def _power(left: Fraction, right: Fraction) -> Fraction:
    if abs(right) > EXPONENT or right.denominator != 1:
        raise TaskError(f"{left} to the power of {right}: exponents are whole numbers up to {EXPONENT}")
    return left ** int(right)


def is_int(value: Fraction) -> bool:
    """Whether a number is whole."""
    return Fraction(value).denominator == 1


def divides(first: Fraction, second: Fraction) -> bool:
    """Whether the second number goes into the first without remainder."""
    return is_int(Fraction(first) / second)


def steps(start: Fraction, stop: Fraction | None = None, step: Fraction = Fraction(1)) -> list[Fraction]:
    """start, start + step, .. below stop; from 0 with one number, as Python's range."""
    low, high = (Fraction(0), Fraction(start)) if stop is None else (Fraction(start), Fraction(stop))
    step = Fraction(step)
    if step <= 0 or (high - low) / step > LENGTH:
        raise TaskError(
            f"numbers from {low} to {high} by {step}: give a step above 0 and at most {LENGTH} numbers"
        )
    count = max(0, -((low - high) // step))
    return [low + i * step for i in range(count)]


def _random_whole(low: Fraction, high: Fraction, count: Fraction | None = None) -> list[Fraction]:
    """The whole numbers that one is drawn from; how many were to be drawn first is nothing to the result."""
    return steps(low, high)


def _list(values: Sequence[Any]) -> list[Any]:
    return list(values)


def _whole(value: Any) -> Fraction:
    return Fraction(int(value))


def _round(value: Fraction, digits: Fraction | None = None) -> Fraction:
    return Fraction(round(Fraction(value), int(digits or 0)))


def _fraction(numerator: Any, denominator: Any = 1) -> Fraction:
    return Fraction(numerator) / denominator


def _rounded(values: Sequence[Fraction]) -> list[Fraction]:
    return [_round(value, Fraction(2)) for value in values]


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "_number": Fraction,
    "_floor": lambda left, right: Fraction(left // right),
    "_over": lambda left, right: Fraction(left) / right,
    "_times": _times,
    "_power": _power,
    "_parts": _parts,
}
#: The functions of templates but those that draw, which `templates` gives.
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "int": _whole,
    "round": _round,
    "abs": abs,
    "min": min,
    "max": max,
    "Fraction": _fraction,
    "format_frac": lambda value: value,
    "is_int": is_int,
    "divides": divides,
    "range": steps,
    "arange": steps,
    "frange": steps,
    "randint": _random_whole,
    "list": _list,
    "fix_floats": _rounded,
    "shuffle_list": _list,
    # drawn in templates.py, which knows the names and the chance
    "sample": lambda pool, count=None: Drawn(list(pool), None if count is None else int(count), False),
    "sample_sequential": lambda pool, count: Drawn(list(pool), int(count), True),
    "numbers_within": lambda low, high: [(in_words(n), Fraction(n)) for n in range(int(low), int(high) + 1)],
}

#: All that an expression can reach beside its values.
KNOWN: dict[str, Any] = {"__builtins__": {}, **OPERATORS, **FUNCTIONS}


@dataclass(frozen=True)
class Drawn:
    """So many of a pool, None for one. in_turn: such as follow one another in it; else any, each once."""

    pool: list[Any]
    count: int | None
    in_turn: bool


def shown(value: Any) -> str:
    """A value as texts have it: 12, 2.5 where decimals end within 4 places, else 1/3."""
    if isinstance(value, bool) or not isinstance(value, int | Fraction):
        return str(value)
    number = Fraction(value)
    if number.denominator == 1:
        return str(number.numerator)
    thousandths = number * 10**4
    if thousandths.denominator == 1:
        sign, digits = "-" * (number < 0), f"{abs(thousandths.numerator):05d}"
        return f"{sign}{digits[:-4]}.{digits[-4:]}".rstrip("0")
    return f"{number.numerator}/{number.denominator}"
