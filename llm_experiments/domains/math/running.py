"""What programs that a model wrote print: run in the sandbox of `scoring.programs`, never in this process."""

from __future__ import annotations

import re
from functools import lru_cache

from llm_experiments.scoring.programs import Limits, run_program

#: Programs of one answer that are run, the first ones.
MOST = 4
LIMITS = Limits(seconds=5, megabytes=512)
_BLOCK = re.compile(r"```\s*(?:python|py)\b[^\n]*\n(.*?)(?:```|\Z)", re.S)
_FAILED = "AssertionError: "


def code(text: str) -> str:
    """The fenced programs of an answer, one behind the other; empty where it has none."""
    return "\n".join(_BLOCK.findall(text)[:MOST])


@lru_cache(maxsize=4096)
def printed(program: str) -> str | None:
    """The end of what a program prints, None where it fails, hangs or prints nothing.

    It is read off the words of a test that always fails. Errors: SandboxError where there is no sandbox.
    """
    running = (
        "import contextlib, io\nwritten = io.StringIO()\nwith contextlib.redirect_stdout(written):\n"
        f"    exec(compile({program!r}, 'answer', 'exec'), {{'__name__': '__main__'}})"
    )
    ran = run_program(running, "raise AssertionError(written.getvalue().strip()[-200:])", LIMITS)
    told = ran.said.removeprefix(_FAILED) if ran.outcome == "wrong" else ""
    return told or None
