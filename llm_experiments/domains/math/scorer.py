"""Reads worked answers: the number that is answered, what became of the steps, in which form they are.

Nothing is judged by a model. A calculation is wrong where what stands left of "=" does not come to what
stands right of it; a step is missing where fewer calculations are written than the solution has.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from llm_experiments.domains.math import running
from llm_experiments.domains.math.expressions import shown
from llm_experiments.domains.math.numbers import CURRENCIES, DIGITS, MINUS, plain
from llm_experiments.scoring import Json, Score, scorer
from llm_experiments.scoring.words import spoken
from results.rows import Item

#: In a text: a number that is no part of a word, an exponent or an ordinal, with its sign; 1 1/2, 3/4, 5.
_NUMBER = re.compile(
    rf"(?<![\w^.,{{])(?P<minus>(?<![\w)\]])(?<![\d)%]\s)[{MINUS}]\s?)?[{CURRENCIES}]?\s?(?P<minus2>[{MINUS}])?"
    rf"(?:(?P<whole>\d+)\s+)?(?P<high>{DIGITS})(?:/(?P<low>\d+(?!\d|\.\d)))?(?!(?:st|nd|rd|th)\b)"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_CODE = re.compile(r"```\s*(?:python|py)\b|^\s*(?:def \w+\(.*\):|print\(|import \w+|from \w+ import )", re.M)
#: What stands right of "=": whole number of a mixed one, number, percent sign; nothing more to compute.
_RESULT = re.compile(
    rf"\s*[{CURRENCIES}]?\s*(?:(\d+)\s+(?=\d+/\d))?([{MINUS}]?\s?[{CURRENCIES}]?(?:{DIGITS})(?:/\d+)?)(\s*%)?"
    r"(?![\d/]|[A-Za-z]\b|\s*[-+*/×]\s*[\d(.])"
)
#: What separates one calculation from the words before it.
_BREAKS = re.compile(r"[\n;:?!]|,\s|\.\s|\.\Z|(?<=\d)\.(?=[A-Z])|=>|⇒|→|≈")
_OPERATORS = {
    "×": "*",
    "·": "*",
    "∙": "*",
    "÷": "/",
    "−": "-",
    "–": "-",
    "\\times": "*",
    "\\cdot": "*",
    "\\div": "/",
}
_TOKEN = re.compile(rf"(?P<number>{DIGITS})(?P<percent>\s*%)?|(?P<sign>[-+*/()])|(?P<unknown>\?)")

#: lm-eval's filters of gsm8k and gsm8k-cot, and what both leave out before texts are compared.
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_STRICT_COT = re.compile(r"The answer is (\-?[0-9\.\,]+).")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


@scorer(
    "numbers",
    outcomes=("correct", "calculation", "step-missing", "other", "no-answer"),
    marks={
        "strict": "right by lm-eval's strict filter of gsm8k, '#### N'",
        "strict_cot": "right by lm-eval's strict filter of gsm8k-cot, 'The answer is N.'",
        "flexible": "right by lm-eval's flexible filter, the last number",
        "code": "written as a program",
        "ran": "its program ran and printed a number",
        "calculation_error": "a calculation that is written out is wrong",
        "steps_found": "share of the solution's results that the text has",
    },
)
class Numbers:
    """Compares the number answered with the right one, exactly.

    Made from {"run": whether programs are run}: what a program prints is then the answer; one that fails, or
    prints no number, leaves what its text says.
    """

    def __init__(self, context: Mapping[str, Json]):
        self.run = context.get("run", False)

    def base_answer(self, item: Item, text: str) -> str | None:
        number = self._answered(text)[0]
        return None if number is None else shown(number)

    def _answered(self, text: str) -> tuple[Fraction | None, bool | None]:
        """The number answered, and whether a program printed it; None where none was run."""
        program = running.code(spoken(text)) if self.run else ""
        if not program:
            return answered(text), None
        last = [*_numbers(running.printed(program) or "")][-1:]
        return (last[0], True) if last else (answered(text), False)

    def name(self, answer: str) -> str | None:
        return answer

    def score(self, item: Item, text: str, base_answer: str | None) -> Score:
        """correct; no-answer without a number; else the first that applies: calculation, a calculation is
        wrong; step-missing, it has fewer calculations than the solution; other, as many or more."""
        (number, ran), right = self._answered(text), Fraction(item.roles["correct"])
        done = list(calculations(text))
        wrong = any(not one.right for one in done)
        code = is_code(text)
        steps = [Fraction(step) for step in str(item.extra.get("steps") or "").split()]
        if number == right:
            outcome = "correct"
        elif number is None:
            outcome = "no-answer"
        elif wrong:
            outcome = "calculation"
        elif len({one.result for one in done}) < len(set(steps)) and not code:
            outcome = "step-missing"
        else:
            outcome = "other"
        there = set(_numbers(text))
        marks = {
            "strict": _same(_first(_STRICT, text), item.roles["correct"]),
            "strict_cot": _same(_first(_STRICT_COT, text), item.roles["correct"]),
            "flexible": _same(_last(text), item.roles["correct"]),
            "code": code,
            "ran": ran,
            "calculation_error": wrong,
            "steps_found": sum(step in there for step in steps) / len(steps) if steps else None,
        }
        return Score(outcome, None if number is None else shown(number), marks)


def is_code(text: str) -> bool:
    """Whether an answer is, in part, a Python program."""
    return _CODE.search(text) is not None


def answered(text: str) -> Fraction | None:
    """The number that a text answers: the last in a box, else behind the last "####", else behind the last
    "answer is", else behind a program's output, else the last number of all; None without any."""
    said = spoken(text)
    behind: tuple[Callable[[str], str | None], ...] = (
        _boxed,
        lambda text: _behind("####", text),
        lambda text: _behind("answer is", text),
        lambda text: _behind("```output", text),
    )
    for find in behind:
        part = find(said)
        if part is not None and (number := next(_numbers(part), None)) is not None:
            return number
    return next(iter([*_numbers(said)][-1:]), None)


def _boxed(text: str) -> str | None:
    """What is in the last \\boxed{..} that is closed, braces within braces included."""
    found = None
    for begun in re.finditer(r"\\f?box(?:ed)?\s*\{", text):
        depth, end = 1, begun.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        found = text[begun.end() : end - 1] if not depth else found
    return found


def _behind(marker: str, text: str) -> str | None:
    at = text.casefold().rfind(marker)
    return None if at < 0 else text[at + len(marker) :]


def _numbers(text: str) -> Iterator[Fraction]:
    """The numbers of a text in order, fractions of LaTeX among them."""
    text = re.sub(r"(?<=[A-Za-z}])\s*\^\s*\{?-?\d+\}?", "", _plain_tex(text))
    for found in _NUMBER.finditer(text):
        low = Fraction(found["low"] or 1)
        if low:
            whole = Fraction(found["whole"]) if found["whole"] and found["low"] else Fraction(0)
            if found["whole"] and not found["low"]:
                yield Fraction(found["whole"])  # two numbers side by side
            size = whole + Fraction(found["high"].replace(",", "")) / low
            yield -size if found["minus"] or found["minus2"] else size


def _plain_tex(text: str) -> str:
    """LaTeX as plain text: fractions as a/b, thousands and text without its commands."""
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r" \1 ", text)
    text = _FRACTION.sub(lambda found: f" {found[1].strip()}/{found[2].strip()} ", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|\\[,!;]\s?)(?=\d{3})", ",", text)
    for sign, plain_sign in _OPERATORS.items():
        text = text.replace(sign, plain_sign)
    return re.sub(
        r"\\[$%]", lambda found: found[0][1], re.sub(r"\\[()\[\],;!]|\\(?:left|right)\b|\*\*", " ", text)
    )


@dataclass(frozen=True)
class Calculation:
    """A calculation that a text writes out: `written` = result. right: whether it comes to that."""

    written: str
    result: Fraction
    right: bool


def calculations(text: str) -> Iterator[Calculation]:
    """Every "a op b = c" of a text, in order; units and names between the numbers are set aside.

    A percentage counts as the number or its hundredth, whichever makes the calculation right; "of" behind it
    multiplies. The result may be cut or rounded where it has decimals: off by less than one in its last
    place. Calculations with unknowns, and such as are no whole expression, are left out.
    """
    text = re.sub(r"(?<![\d.,])(\d{1,3})((?: \d{3})+)\b(?![.,]?\d)", _joined, re.sub(r"<<.*?>>", "", text))
    parts = _plain_tex(text).split("=")
    for before, after in pairwise(parts):
        result = _RESULT.match(after)
        if result is None or (value := plain(result[2])) is None:
            continue
        value += 0 if result[1] is None else Fraction(result[1])
        written = _BREAKS.split(before)[-1]
        lefts = list(_readings(written))
        if lefts:
            values = {value, value / 100} if result[3] else {value}
            place = _place(result[2])
            right = any(
                _comes_to(left, one, place / (100 if one != value else 1)) for left in lefts for one in values
            )
            yield Calculation(" ".join(written.split()), value, right)


def _joined(found: re.Match[str]) -> str:
    """Thousands that spaces part as one number."""
    return found[0].replace(" ", "")


def _place(text: str) -> Fraction:
    """What one in the last place of a number's text is worth, 0 for a whole number or a fraction."""
    decimals = 0 if "/" in text else len(text.rstrip().partition(".")[2])
    return Fraction(1, 10**decimals) if decimals else Fraction(0)


def _comes_to(left: Fraction, right: Fraction, place: Fraction) -> bool:
    return left == right or abs(left - right) < place


def _readings(written: str) -> Iterator[Fraction]:
    """The values of the longest expression that a text ends with: with its percentages as numbers, as
    hundredths. None where that has no operator, or where anything unknown stands in the text."""
    tokens = list(_tokens(written))
    if "?" in tokens:
        return
    for start in range(len(tokens)):
        if tokens[start] == "-" and start and tokens[start - 1][0].isdigit():
            continue  # no sign: it takes away from what stands before
        part = tokens[start:]
        if not any(token in "+-*/" for token in part[1:]):
            return
        found = [_value(part, hundredths) for hundredths in (False, True)]
        if found[0] is not None:
            yield from {value for value in found if value is not None}
            return


def _tokens(written: str) -> Iterator[str]:
    """Numbers, operators, parentheses; "?" for an unknown. Words go, and units behind a stroke with them."""
    text = re.sub(r"(?<=\d)\s*[x×]\s*(?=[\d(.$])", " * ", written)
    text = re.sub(r"(?<=[\d%)])\s*of\s+(?:the\s+|those\s+)?(?=[^\w\s]?\d)", " * ", text)
    text = re.sub(r"(?<=[\d%)])\s*of\s", " ? ", text)
    text = re.sub(r"(?<!\d)(\d+)\s+(\d+/\d+)", r"(\1+\2)", text)
    text = re.sub(r"(?<=\d)\(", " * (", text)
    text = re.sub(r"/\s*[A-Za-z][\w-]*", " ", text)
    text = re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z\d])|(?<=\d)-(?=[A-Za-z])", " ", text)
    text = re.sub(
        r"\b[A-Za-z]\b(?!')|(?<=\d)[A-Za-z](?![A-Za-z])",
        lambda found: " " if found[0] in "aAI" else " ? ",
        text,
    )
    text = re.sub(r"[^\W\d_][\w'’]*", " ", text)
    end = 0
    for found in _TOKEN.finditer(text):
        if re.search(r"[^\s$€£¥₹₽₩₪₺₣₦฿₫₱,*_`\"']", text[end : found.start()]):
            yield "?"
        end = found.end()
        if found["number"]:
            yield found["number"].replace(",", "") + ("%" if found["percent"] else "")
        else:
            yield found[0]


def _value(tokens: list[str], hundredths: bool) -> Fraction | None:
    """The value of a sequence of tokens, None where it is no expression."""
    numbers: dict[str, Fraction] = {}

    def named(token: str) -> str:
        if token in "()+-*/":
            return token
        name = f"n{len(numbers)}"  # names, as two numbers side by side are no expression
        numbers[name] = Fraction(token.removesuffix("%")) / (100 if hundredths and token.endswith("%") else 1)
        return name

    try:
        tree = ast.parse(" ".join(map(named, tokens)), mode="eval")
        return _computed(tree.body, numbers)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _computed(node: ast.expr, numbers: Mapping[str, Fraction]) -> Fraction:
    if isinstance(node, ast.Name):
        return numbers[node.id]
    if isinstance(node, ast.UnaryOp):
        value = _computed(node.operand, numbers)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _COMPUTED:
        return _COMPUTED[type(node.op)](_computed(node.left, numbers), _computed(node.right, numbers))
    raise ValueError("no arithmetic")


_COMPUTED: Mapping[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def results(solution: str) -> list[Fraction]:
    """The results of a solution's own calculations, each once, in order."""
    return list(dict.fromkeys(one.result for one in calculations(solution)))


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return None if found is None else found[1]


def _last(text: str) -> str | None:
    found = _FLEXIBLE.findall(text)
    return (found[-1][0] or found[-1][1]) if found else None


def _same(found: str | None, right: str) -> bool:
    """Whether two texts are one, as lm-eval compares them."""
    return found is not None and _cleaned(found) == _cleaned(right)


def _cleaned(text: str) -> str:
    for pattern in _IGNORED:
        text = pattern.sub("", text.strip())
    return text.casefold()
