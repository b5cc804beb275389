"""Compositions and records as pure data; needs no array library.

A Composition says what is trained, merged and asked; a Record says what the toy model answers.
"""

from toytransformer.compositions import catalogue, setups
from toytransformer.compositions.io import provenance, replace_file
from toytransformer.compositions.records import Record, read_jsonl, write_jsonl
from toytransformer.compositions.spec import (
    DECODES,
    OUTCOMES,
    Adapter,
    Composition,
    Merge,
    Question,
    question,
)
from toytransformer.compositions.twins import known_twin
from toytransformer.compositions.worlds import Fact, Prompt, SpecError, World

__all__ = [
    "DECODES",
    "OUTCOMES",
    "Adapter",
    "Composition",
    "Fact",
    "Merge",
    "Prompt",
    "Question",
    "Record",
    "SpecError",
    "World",
    "catalogue",
    "known_twin",
    "provenance",
    "question",
    "read_jsonl",
    "replace_file",
    "setups",
    "write_jsonl",
]
