"""Reads programs off answers and runs their tests, in a sandbox (scoring.programs); compares translations."""

from __future__ import annotations

import ast
import hashlib
import re
import textwrap
from collections import Counter
from collections.abc import Mapping

from llm_experiments.scoring import Json, Score, scorer
from llm_experiments.scoring.programs import run_program, unsafe_allowed
from llm_experiments.scoring.words import spoken, words
from results.rows import Item

#: From this overlap on a translation counts as right.
TRANSLATED = 0.5
_FENCE = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
#: Where a program begins that stands in no block.
_BEGINS = re.compile(r"^(?:def |import |from \w|class |@)", re.MULTILINE)


@scorer(
    "programs",
    outcomes=("correct", "wrong", "error", "timeout", "no-code"),
    marks={
        "fenced": "the program stands in a block of code",
        "compiles": "the program is Python",
        "overlap": "of a translation: F1 of its words and those wanted",
    },
    runs=True,
)
class Programs:
    """Right is what passes all tests. Its context is empty."""

    def __init__(self, context: Mapping[str, Json]):
        pass

    def base_answer(self, item: Item, text: str) -> str | None:
        if "translation" in item.extra:
            return " ".join(words(spoken(text))) or None
        program, _ = found(text, str(item.extra["head"]), str(item.extra["name"]))
        return None if program is None else digest(program)

    def name(self, answer: str) -> str | None:
        return None

    def score(self, item: Item, text: str, base_answer: str | None) -> Score:
        if "translation" in item.extra:
            return _compared(text, str(item.extra["translation"]))
        program, fenced = found(text, str(item.extra["head"]), str(item.extra["name"]))
        if program is None:
            return Score("no-code", None, {"fenced": False, "compiles": False})
        marks = {"fenced": fenced, "compiles": _compiles(program)}
        ran = run_program(program, str(item.extra["tests"]), unsafe=unsafe_allowed())
        outcome = "correct" if ran.outcome == "passed" else ran.outcome
        return Score(outcome, digest(program), marks)


def found(text: str, head: str, name: str) -> tuple[str | None, bool]:
    """The program that an answer holds, and whether it stands in a block of code; None where there is none.

    The first block that defines the function, else the first block; without a block what follows the first
    line of code. What does not define the function is taken as its body, behind the head.
    """
    said = spoken(text)
    blocks = [block for block in _FENCE.findall(said) if block.strip()]
    defines = re.compile(rf"^\s*def {re.escape(name)}\b", re.MULTILINE) if name else None
    if blocks:
        chosen = next((block for block in blocks if defines and defines.search(block)), blocks[0])
        return _whole(chosen, head, name), True
    begins = _BEGINS.search(said)
    if begins:
        return _whole(_while_code(said[begins.start() :]), head, name), False
    if head and said.strip() and _compiles(_behind(head, said)):
        return _behind(head, said), False
    return None, False


def _whole(code: str, head: str, name: str) -> str:
    """Code that defines the function, with what the head imports; else the head with the code as its body."""
    code = textwrap.dedent(code).strip("\n")
    if not head or re.search(rf"^def {re.escape(name)}\b", code, re.MULTILINE):
        imports = [line for line in head.splitlines() if re.match(r"(?:import|from) ", line)]
        return "\n".join([*imports, code])
    return _behind(head, code)


def _behind(head: str, body: str) -> str:
    body = body.strip("\n")
    if not body.startswith((" ", "\t")):
        body = textwrap.indent(textwrap.dedent(body), "    ")
    return f"{head.rstrip()}\n{body}"


def _while_code(text: str) -> str:
    """Lines up to the last with which the text is still Python; all of it where no part is."""
    lines = text.splitlines()
    for end in range(len(lines), 0, -1):
        if _compiles("\n".join(lines[:end])):
            return "\n".join(lines[:end])
    return text


def _compiles(program: str) -> bool:
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def digest(program: str) -> str:
    """A short hash of what a program says, not of how it is laid out; of its text where it is no Python."""
    try:
        said = ast.dump(ast.parse(program))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        said = program.strip()
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _compared(text: str, wanted: str) -> Score:
    said, right = Counter(words(spoken(text))), Counter(words(wanted))
    common = (said & right).total()
    overlap = 2 * common / max(said.total() + right.total(), 1)
    outcome = "correct" if overlap >= TRANSLATED else "wrong"
    return Score(outcome, " ".join(words(spoken(text))) or None, {"overlap": overlap})
