"""Solutions as programs: a template's own expressions, as one Python function for all problems of it.

    def solve(n, m, k):          the steps of the template's solution, each by the steps before it
        a = n * m
        b = a - k
        return b

    print(solve(n=3, m=4, k=5))  the numbers of the problem

The paper has such programs written by a language model, one for all three levels of a problem; here they
follow from the template, and what the levels share are the steps that they have in common.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from llm_experiments.domains.math.expressions import expression
from llm_experiments.domains.math.templates import Template

_BRACES = re.compile(r"\{([^{}]*)\}")


def program(template: Template, values: Mapping[str, Any]) -> str:
    """The program of a problem. values: of the template's variables (Template.fit, Problem.values)."""
    body, used = _body(template)
    given = ", ".join(f"{name}={_literal(values[name])}" for name in used)
    lines = [
        f"def solve({', '.join(used)}):",
        *(f"    {line}" for line in body),
        "",
        f"print(solve({given}))",
    ]
    if "Fraction(" in "\n".join(lines):
        lines = ["from fractions import Fraction", "", *lines]
    return "\n".join(lines)


def _body(template: Template) -> tuple[list[str], list[str]]:
    """The lines of the function and the variables that it takes, in the template's order."""
    named: dict[str, str] = {}
    lines = []
    free = (letter for letter in _names() if letter not in template.variables)
    for step in [*_steps(template)]:
        source = _by(step, named)
        if source not in named.values():
            named[ast.dump(step)] = name = next(free)
            lines.append(f"{name} = {source}")
    result = _by(template.answer.tree, named)
    text = "\n".join([*lines, result])
    used = [name for name in template.variables if re.search(rf"\b{name}\b", text)]
    return [*lines, f"return {result}"], used


def _steps(template: Template) -> Iterator[ast.expr]:
    """The computed expressions of a solution up to the answer, each once, in order."""
    seen = set()
    for part in _BRACES.findall(template.solution.rpartition("####")[0]):
        tree = _plain(expression(part).tree)
        if isinstance(tree, ast.BinOp) and (key := ast.dump(tree)) not in seen:
            seen.add(key)
            yield tree


def _plain(tree: ast.expr) -> ast.expr:
    """Without an int(..) around all of it, which the values of a template do not need."""
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "int":
        return _plain(tree.args[0])
    return tree


def _by(tree: ast.expr, named: Mapping[str, str]) -> str:
    """An expression in which every step that has a name stands by it."""

    class Named(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            if isinstance(node, ast.expr):
                found = named.get(ast.dump(_plain(node)))
                if found is not None:
                    return ast.Name(found, ast.Load())
            return self.generic_visit(node)

    copied = ast.parse(ast.unparse(tree), mode="eval").body
    return ast.unparse(Named().visit(copied))


def _names() -> Iterator[str]:
    """step1, step2, .."""
    return (f"step{number}" for number in range(1, 1000))


def _literal(value: Any) -> str:
    if isinstance(value, Fraction):
        if value.denominator == 1:
            return str(value.numerator)
        return f"Fraction({value.numerator}, {value.denominator})"
    return repr(value)
