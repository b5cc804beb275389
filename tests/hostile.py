"""Random and mutated command lines and JSON documents, and what a command made of one.

    for arguments in itertools.islice(command_lines(cli, random.Random(0), folder), 200):
        assert fault(call(main, arguments, seconds=30)) is None

Command lines are read off the commands themselves: every option and argument with values that fit, that
nearly fit and that do not. Sizes are either so small that the work takes a moment, or beyond any machine.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

#: Text that no option wants.
ODD = (
    *(
        "",
        " ",
        "-",
        "--",
        "-1",
        "0",
        "1.5",
        "1e999",
        "nan",
        "inf",
        "-inf",
        "true",
        "null",
        "None",
        "0x10",
        "1_0",
    ),
    *("é", "日本語", "\u202e", "\x1b[31mred", "a\nb", "a\tb", "[red]bold[/]", "%s%n", "{}", "$(id)", "`id`"),
    *(
        "a\0b",
        "'; id;'",
        "<script>",
        "../../etc/passwd",
        "~nosuch/x",
        "a" * 5000,
        "9" * 400,
        "9" * 5000,
        "[" * 5000,
    ),
    *('{"a": 1}', "a=b=c", "=", "1,2", ",", "1,,2", "x" * 70 + "=1"),
)
NUMBERS = ("0", "1", "2", "3", "-1", "7", "4294967296", str(2**63), str(2**70), "1" + "0" * 400)


@dataclass(frozen=True)
class Outcome:
    """What a call did. status: None where it ran past its time, an exception where one came out."""

    arguments: tuple[str, ...]
    status: int | str | None
    out: str
    err: str


def call(main: Callable[[], None], arguments: Sequence[str], seconds: int = 30) -> Outcome:
    """Run a command line in this process, under a limit of time (by SIGALRM, so in the main thread)."""

    class TooLong(BaseException):
        pass

    def stop(*_: object) -> None:
        raise TooLong

    status: int | str | None = 0
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        sys.argv = ["command", *arguments]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except TooLong:
        status = None
    except BaseException as error:
        status = f"{type(error).__name__}: {error}"[:500]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        sys.argv = before
    return Outcome(tuple(arguments), status, out.getvalue(), err.getvalue())


def fault(outcome: Outcome) -> str | None:
    """What is wrong with it: it has to end in time with 0, 1 or 2, and 2 says why in one line."""
    if outcome.status is None:
        return "ran past its time"
    if outcome.status not in (0, 1, 2):
        return f"ended with {outcome.status}"
    text = outcome.out + outcome.err
    if "Traceback" in text or "Warning:" in text:
        return "shows a traceback or a raw warning"
    if outcome.status == 2 and not outcome.err.startswith("Usage: "):  # the help, when nothing was given
        errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        if len(errors) != 1 or not outcome.err.rstrip("\n").endswith(errors[0]) or len(errors[0]) < 12:
            return "does not say in one line what is wrong"
        if len(errors[0]) > 1200:
            return f"says it in {len(errors[0])} letters"
        if "\x1b" in errors[0]:
            return "lets through what a terminal obeys"
    return None


# ---- files ----


def files(folder: Path, rng: random.Random, document: str = "{}") -> list[str]:
    """Paths of files and other things that an option of a file may be given, made in `folder`."""
    (folder / "a-folder").mkdir(exist_ok=True)
    contents = {
        "empty": b"",
        "binary": bytes(rng.randrange(256) for _ in range(300)),
        "deep.json": b"[" * 100_000,
        "list.json": b"[1, 2]",
        "number.json": b"9" * 5000,
        "latin": "é".encode("latin-1"),
        "document.json": document.encode(),
        "mutated.json": mutated_text(document, rng).encode(errors="surrogatepass"),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for name, target in (("link", "document.json"), ("dangling", "nowhere"), ("circle", "circle")):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    names = [*contents, "link", "dangling", "circle", "a-folder", "new-file", "missing/new-file"]
    return [*(str(folder / name) for name in names), "/dev/null", "/dev/full", "/proc/1/mem", "."]


# ---- command lines ----


def command_lines(
    command: click.Command,
    rng: random.Random,
    folder: Path,
    words: Mapping[str, Sequence[str]] | None = None,
    skip: Sequence[str] = (),
) -> Iterator[tuple[str, ...]]:
    """Command lines without end. words: values worth trying, by option or argument. skip: commands."""
    while True:
        line = list(_line(command, rng, files(folder, rng), words or {}, skip))
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 4))):
            line = _mutated(line, rng)
        if not any(part in skip for part in line):
            yield tuple(line)


def _line(
    command: click.Command,
    rng: random.Random,
    paths: Sequence[str],
    words: Mapping[str, Sequence[str]],
    skip: Sequence[str],
) -> Iterator[str]:
    for parameter in command.params:
        required = parameter.required or isinstance(parameter, click.Argument)
        if rng.random() > (0.95 if required else 0.25) or not parameter.name or "help" in parameter.name:
            continue
        for _ in range(rng.choice((1, 1, 2)) if parameter.multiple or parameter.nargs == -1 else 1):
            if isinstance(parameter, click.Option):
                yield rng.choice((*parameter.opts, *parameter.secondary_opts))
                if parameter.is_flag or parameter.secondary_opts:
                    continue
            yield _value(parameter, rng, paths, words)
    if isinstance(command, click.Group):
        name = rng.choice(sorted(set(command.commands) - set(skip)))
        yield name
        yield from _line(command.commands[name], rng, paths, words, skip)


def _value(
    parameter: click.Parameter, rng: random.Random, paths: Sequence[str], words: Mapping[str, Sequence[str]]
) -> str:
    if rng.random() < 0.15:
        return rng.choice((*ODD, *NUMBERS, *paths))
    known = words.get(parameter.name or "")
    if known:
        return rng.choice(known)
    if isinstance(parameter.type, click.Choice):
        return str(rng.choice(list(parameter.type.choices)))
    if isinstance(parameter.type, click.Path):
        return rng.choice(paths)
    if isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType):
        return rng.choice(NUMBERS)
    return rng.choice((*ODD, *NUMBERS))


def _mutated(line: list[str], rng: random.Random) -> list[str]:
    place = rng.randrange(len(line) + 1)
    kind = rng.randrange(5)
    if kind == 0 or not line or place == len(line):
        return [*line[:place], rng.choice(ODD), *line[place:]]
    if kind == 1:
        return line[:place] + line[place + 1 :]
    if kind == 2:
        return [*line[:place], line[place], *line[place:]]
    if kind == 3:
        return [*line[:place], mutated_text(line[place], rng), *line[place + 1 :]]
    other = rng.randrange(len(line))
    line[place], line[other] = line[other], line[place]
    return line


# ---- JSON ----


def mutated_text(text: str, rng: random.Random) -> str:
    """The text with a few letters lost, doubled or put in, or cut off."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(text) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:place] + rng.choice('[]{},:"\\0e-é\u2028 ') + text[place:]
        elif kind == 1:
            text = text[:place] + text[place + 1 :]
        elif kind == 2:
            text = text[:place]
        else:
            text = text[:place] + text[place : place + 20] + text[place:]
    return text


def mutated_json(value: Any, rng: random.Random) -> Any:
    """A copy of the JSON value in which one thing, at any depth, is another, absent or added."""
    value = json.loads(json.dumps(value))
    holders: list[Any] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict | list) and node:
            holders.append(node)
            for part in node.values() if isinstance(node, dict) else node:
                walk(part)

    walk(value)
    if not holders or rng.random() < 0.05:
        return _scalar(rng)
    holder = rng.choice(holders)
    key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    kind = rng.randrange(4)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice((*ODD[:20], "name", "rank"))] = holder.pop(key)
    elif kind == 2:
        holder[key] = rng.choice(holders[:1] if rng.random() < 0.1 else [[holder[key]], {"a": holder[key]}])
        if holder[key] is holders[0]:  # no circles: JSON has none
            holder[key] = None
    else:
        holder[key] = _scalar(rng)
    return value


def _scalar(rng: random.Random) -> Any:
    numbers = (0, -1, 1, 2, 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf"))
    return rng.choice((*ODD, *numbers, True, False, None, [], {}, [[]], [None], {"": {}}))


def documents(valid: Sequence[Any], rng: random.Random) -> Iterator[str]:
    """JSON texts without end: valid ones with one to five mutations of their content or of their letters."""
    while True:
        value = rng.choice(valid)
        for _ in range(rng.choice((1, 1, 2, 5))):
            value = mutated_json(value, rng)
        text = json.dumps(value)
        yield mutated_text(text, rng) if rng.random() < 0.2 else text
