"""What the error of a step means: no room on the disk or in memory, a refusal of ours, or a fault."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

from llm_experiments.engine.sealing import NO_SPACE


def no_space(error: BaseException) -> BaseException | None:
    """The error underneath that says that the disk is full: an OSError, or what Rust and C++ writers say."""
    for cause in _chain(error):
        said = "No space left on device" in str(cause) or "os error 28" in str(cause)
        if said or (isinstance(cause, OSError) and cause.errno in NO_SPACE):
            return cause
    return None


def unexpected(error: BaseException) -> bool:
    """Whether the error is none that the packages raise on purpose, so that its traceback is wanted."""
    return not _no_memory(error) and not (isinstance(error, ValueError) and type(error) is not ValueError)


def explain(error: BaseException) -> str:
    """One line for an error of a step: what happened and what to do."""
    text = " ".join(str(error).split())
    if _no_memory(error):
        said = f" ({text[:200]})" if text else ""
        return (
            f"out of memory{said}: choose a smaller --model or --profile, --four-bit or --dtype bfloat16, "
            "or free memory; then run the same command again"
        )
    if not unexpected(error):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def free() -> None:
    """Give back memory after a failure, the GPU's too if torch is in use."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, and so on."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _no_memory(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    said = "allocate memory" in str(error) or "out of memory" in str(error).lower()
    return (
        "OutOfMemoryError" in names
        or isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and said)
    )
