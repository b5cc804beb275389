"""What is taught and asked: programs by what they should do, functions to complete, sentences to translate.

    set            from                                             variable of the environment
    mbpp           google-research-datasets/mbpp, ids 601 to 974     LORA_LIMITS_MBPP
    sentences      Helsinki-NLP/opus-100, en-es                     LORA_LIMITS_EN_ES
    humaneval-xl   floatai/HumanEval-XL, Python, two languages      LORA_LIMITS_HUMANEVAL_XL
    own            problems.toml, of our own writing: a few of each

The published sets are read from the hub or from a copy, never kept here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from llm_experiments.domains.published import Published, text
from llm_experiments.domains.task import TaskError

MBPP = Published(
    "google-research-datasets/mbpp", "LORA_LIMITS_MBPP", ("full/*.parquet", "mbpp.jsonl", "*.jsonl")
)
SENTENCES = Published(
    "Helsinki-NLP/opus-100", "LORA_LIMITS_EN_ES", ("en-es/train*.parquet", "*en*es*.jsonl", "*.jsonl")
)
#: By language of the instructions.
HUMANEVAL = {
    language: Published(
        "floatai/HumanEval-XL",
        "LORA_LIMITS_HUMANEVAL_XL",
        (
            f"data/python/{language.title()}.jsonl",
            f"python/{language.title()}.jsonl",
            f"humaneval*{language}*.jsonl",
        ),
    )
    for language in ("english", "spanish")
}
LANGUAGES = tuple(HUMANEVAL)
SOURCES = ("own", "published")
#: MBPP's own split: these are its training examples.
TRAINING = range(601, 975)


@dataclass(frozen=True)
class Program:
    """What a program should do, a program that does, and its tests, a line each."""

    id: str
    said: str
    code: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """A function's head and what it should do, in one language; tests call it by its name."""

    id: str
    language: str
    head: str
    name: str
    tests: str
    body: str = ""


def programs(source: str, seed: int) -> list[Program]:
    """Programs to learn from, in an order that the seed draws. Errors: TaskError."""
    if _checked(source) == "own":
        found = [
            Program(f"own/{number}", one["said"], _whole(one), tuple(one["tests"]))
            for number, one in enumerate(_own()["program"])
        ]
    else:
        found = []
        for row in MBPP.rows():
            if row.get("task_id") in TRAINING:
                if not isinstance(row.get("test_list"), Sequence):
                    raise TaskError(f"mbpp/{row['task_id']} has no 'test_list': give the published rows")
                code = text(row, "code").replace("\r\n", "\n").replace("\t", "    ")
                found.append(
                    Program(
                        f"mbpp/{row['task_id']}",
                        text(row, "text"),
                        code,
                        (*_lines(row.get("test_setup_code")), *row["test_list"]),
                    )
                )
    return _mixed(found, f"programs {seed}", "programs")


def sentences(source: str, seed: int, most: int) -> list[tuple[str, str]]:
    """English sentences with Spanish ones, so many at most. Errors: TaskError."""
    if _checked(source) == "own":
        found = [(one["english"], one["spanish"]) for one in _own()["sentence"]]
    else:
        rows = [row.get("translation", row) for row in SENTENCES.rows()]
        found = [(text(row, "en"), text(row, "es")) for row in rows]
    return _mixed(found, f"sentences {seed}", "sentences")[:most]


def functions(source: str, language: str, most: int | None) -> list[Function]:
    """Functions to complete, in the published order. Errors: TaskError on another language, too."""
    if language not in LANGUAGES:
        raise TaskError(f"there are no functions in {language!r}: choose {' or '.join(LANGUAGES)}")
    if _checked(source) == "own":
        found = [
            Function(
                f"own/{number}",
                language,
                f'{one["head"]}\n    """{one[language]}"""\n',
                one["name"],
                "\n".join(one["tests"]),
                one["body"],
            )
            for number, one in enumerate(_own()["function"])
        ]
    else:
        found = [
            Function(
                text(row, "task_id"),
                language,
                text(row, "prompt"),
                text(row, "entry_point"),
                f"{text(row, 'test')}\ncheck({row['entry_point']})",
                str(row.get("canonical_solution") or ""),
            )
            for row in HUMANEVAL[language].rows()
        ]
    return found[:most]


def _checked(source: str) -> str:
    if source not in SOURCES:
        raise TaskError(f"there is no source {source!r} of code: choose {' or '.join(SOURCES)}")
    return source


def _mixed(found: Sequence[Any], seed: str, what: str) -> list[Any]:
    if not found:
        raise TaskError(f"there are no {what} to learn from: give the whole published set")
    mixed = list(found)
    Random(seed).shuffle(mixed)
    return mixed


def _lines(code: object) -> list[str]:
    return [line for line in str(code or "").splitlines() if line.strip()]


def _whole(one: Mapping[str, Any]) -> str:
    return f"{one['head']}\n{one['body']}".rstrip("\n")


@cache
def _own() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("problems.toml").read_text(encoding="utf-8"))
