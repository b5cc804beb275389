"""Chat templates: programs that come with a model, rendered so that a prompt depends on its question alone.

A template runs in Jinja's immutable sandbox and is offered what transformers offers (blocks trimmed, loop
controls, `generation` blocks, tojson without escapes, raise_exception), with two differences: today is always
DATE, and there is nothing to draw at random from. Before one is used, its probes are rendered in a process of
its own, with SECONDS and BYTES as limits, and they must come out as they do here: a template that writes
addresses or orders by hash differs. A later rendering ends after STEPS lines of Python, and is refused if
Python's words for an address are in it.

This file is run as that process and imports nothing but Jinja and the standard library.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TextIO

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

DATE = datetime.datetime(2024, 7, 26)
#: What templates of some families ask for by these names.
FIXED = {"enable_thinking": False, "date_string": f"{DATE:%d %b %Y}"}
SECONDS, BYTES = 2, 2**29
STEPS = 200_000
LENGTH = 1_000_000
#: How Python shows where an object lies in memory.
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")
#: Removed from Jinja's own: they draw at random.
CHANCE = {"filters": ("random",), "globals": ("lipsum",)}

Turn = dict[str, str]
#: Name of a special token -> its text, or texts.
Tokens = Mapping[str, str | Sequence[str]]

#: The text of a probe, or None and why there is none.
Attempt = tuple[str | None, str]

_QUESTION = {"role": "user", "content": "Which one is it?"}
_ANSWER = {"role": "assistant", "content": "It is this one."}
#: Turns and whether an answer is to follow: the shapes in which prompts.py asks.
PROBES: tuple[tuple[list[Turn], bool], ...] = (
    ([_QUESTION], False),
    ([_QUESTION], True),
    ([_QUESTION, _ANSWER], False),
    ([_QUESTION, _ANSWER, _QUESTION], False),
    ([{"role": "system", "content": "Be brief."}, _QUESTION], True),
)


class UnfitTemplate(ValueError):
    """A template that cannot be used here, or turns that it cannot show; the message says why."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template that was tried, with the special tokens it may write."""

    compiled: Template
    tokens: Tokens

    def render(self, turns: Sequence[Turn], generate: bool = False) -> str:
        """The turns as one text; `generate` adds what comes before an answer. Errors: UnfitTemplate."""
        variables = {**self.tokens, **FIXED, "tools": None, "documents": None}
        turns = [dict(turn) for turn in turns]
        try:
            with steps_limited(STEPS):
                text = self.compiled.render(messages=turns, add_generation_prompt=generate, **variables)
            text.encode()  # half a surrogate pair is no text
            if len(text) > LENGTH:
                raise UnfitTemplate(f"it writes {len(text)} characters; more than {LENGTH} are no prompt")
            given = f"{turns}{self.tokens}"  # of this very prompt: the probes may not have shown it
            if written := next((word for word in ADDRESS.findall(text) if word not in given), None):
                raise UnfitTemplate(f"it writes an address, {written}, which is another in every process")
            return text
        except UnfitTemplate:
            raise
        except Exception as error:  # whatever a program may raise
            raise UnfitTemplate(f"{type(error).__name__}: {error}") from error


def chat_template(source: str, tokens: Tokens) -> ChatTemplate:
    """Compile and try a template. Errors: UnfitTemplate."""
    frozen = json.dumps(dict(tokens), sort_keys=True)
    return _tried(source, frozen)


@functools.lru_cache(maxsize=32)
def _tried(source: str, tokens: str) -> ChatTemplate:
    apart = _rendered_apart(source, tokens)
    if all(text is None for text, _ in apart):
        raise UnfitTemplate(apart[0][1])
    template = _compiled(source, json.loads(tokens))
    if [text for text, _ in _attempts(template)] != [text for text, _ in apart]:
        raise UnfitTemplate("it writes other words in another process: they depend on chance or on addresses")
    return template


def _rendered_apart(source: str, tokens: str) -> list[Attempt]:
    command = [sys.executable, "-I", __file__]
    given = json.dumps({"source": source, "tokens": json.loads(tokens)})
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=10 * SECONDS)
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        pass
    except ValueError:
        reason = (done.stderr.strip().splitlines() or [""])[-1]
        if reason.startswith(UnfitTemplate.__name__):
            raise UnfitTemplate(reason.partition(": ")[2]) from None
    raise UnfitTemplate(f"it does not end within {SECONDS} s and {BYTES >> 20} MiB")


def _attempts(template: ChatTemplate) -> list[Attempt]:
    """What becomes of each probe."""

    def attempt(turns: Sequence[Turn], generate: bool) -> Attempt:
        try:
            return template.render(turns, generate), ""
        except UnfitTemplate as error:
            return None, str(error)

    return [attempt(*probe) for probe in PROBES]


def _compiled(source: str, tokens: Tokens) -> ChatTemplate:
    try:
        return ChatTemplate(_environment().from_string(source), tokens)
    except Exception as error:  # Jinja's own, and what Python's compiler says of deep nesting
        drawn = isinstance(error, TemplateError) and any(
            f"'{name}'" in str(error) for name in CHANCE["filters"]
        )
        more = "; prompts may not depend on chance" if drawn else ""
        raise UnfitTemplate(f"{type(error).__name__}: {error}{more}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    for name in CHANCE["filters"]:
        del environment.filters[name]
    for name in CHANCE["globals"]:
        del environment.globals[name]
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": DATE.strftime,
        "dict": lambda *pairs, **items: dict(*pairs, **items),  # not the class, which has attributes
        "namespace": GuardedNamespace,
    }
    return environment


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class GuardedNamespace(Namespace):
    """Jinja's, without names that begin with an underscore: through those the sandbox could be left."""

    def __init__(self, *pairs: object, **attributes: object):
        given = dict(*pairs, **attributes)
        for name in given:
            _refuse_underscore(name)
        super().__init__(given)

    def __setitem__(self, name: str, value: object) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}")


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote, for those who train on it; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Macro) -> str:
        return caller()


@contextlib.contextmanager
def steps_limited(steps: int) -> Iterator[None]:
    """Raise UnfitTemplate once the block has run more than so many lines of Python: loops and recursion."""
    left = steps

    def count(frame: FrameType, event: str, argument: object) -> Callable:
        nonlocal left
        left -= 1
        if left < 0:
            raise UnfitTemplate(f"it does not end within {steps} steps")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


def _serve(read: TextIO, write: TextIO) -> None:
    """Render the probes under limits: what `_rendered_apart` asks this file for."""
    with contextlib.suppress(ImportError):  # elsewhere than on Unix: the time alone is limited
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    given = json.load(read)
    json.dump(_attempts(_compiled(given["source"], given["tokens"])), write)


if __name__ == "__main__":
    try:
        _serve(sys.stdin, sys.stdout)
    except UnfitTemplate as error:
        sys.exit(f"UnfitTemplate: {' '.join(str(error).split())}")
