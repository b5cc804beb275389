"""Inputs as bytes: JSON lines, one value a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from llm_experiments.engine.sealing import StoreError

LINE = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def encoded(lines: Iterable[object]) -> bytes:
    """One line of JSON for each value, its keys in their order. Errors: StoreError on what JSON lacks."""
    try:
        return "".join(LINE.encode(line) + "\n" for line in lines).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"an input is not JSON ({error}): use plain values") from error


def decoded(content: bytes) -> list[Any]:
    """The values that encoded() was given. Errors: StoreError on other bytes."""
    try:
        return [json.loads(line) for line in content.splitlines()]
    except (ValueError, RecursionError) as error:
        raise StoreError(f"an input is not JSON lines ({error})") from error
