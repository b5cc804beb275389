"""What the command lines of all packages share: how they end, how a bad argument looks."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import click

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

#: What becomes one line and status 2: bad arguments, what the library refuses, files that cannot be used.
REFUSALS = (click.ClickException, ValueError, MemoryError, OSError)


def run(command: click.Command, name: str) -> NoReturn:
    """Run a command and exit with its status; a bad argument is one line on stderr and status 2.

    What the library refuses (ValueError, MemoryError) and files that cannot be read or written (OSError) are
    bad arguments too. Without any argument, the help is shown. `name` is how the command was called.
    """
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # read when torch is loaded: do not spin on shared cores
    try:
        status = command.main(prog_name=name, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(130)
    except REFUSALS as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        print(f"error: {one_line(message)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def one_line(message: str, most: int = 1000) -> str:
    """The message on one line: what a terminal would obey is escaped, and a long middle left out."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.split()))
    return text if len(text) <= most else f"{text[: most // 2]} .. {text[-most // 2 :]}"


def needs_extra(extra: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorator of a command that imports what only an extra installs: without it, one line says which."""

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            try:
                return function(*args, **kwargs)
            except ModuleNotFoundError as error:
                if not error.name or "." in error.name:  # of a package that is installed: a bug, no extra
                    raise
                install = f"pip install 'lora-limits[{extra}]'"
                raise click.UsageError(
                    f"this command needs {error.name}, which is not installed: {install}"
                ) from error

        return call

    return decorate


class RegularFile(click.ParamType):
    """A file to read: no folder, and no device or pipe, which may never end."""

    name = "file"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path, if a regular file is there; a usage error if not."""
        path = Path(value)
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # a name too long, or with a zero byte
            pass
        self.fail(f"there is no file {str(value)[:200]!r}", param, ctx)


def merge_weights(text: str | None) -> tuple[float, ...] | None:
    """--weights of a merge, "0.5,0.5", as numbers."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"--weights is {text!r}; give numbers by comma, such as 0.5,0.5") from None


def stack_layers(text: str, adapters: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """--layers of a stack, "1,2" or "1+2,2": the layers of each adapter, in the adapters' order."""
    try:
        places = [tuple(int(layer) for layer in part.split("+")) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(
            f"--layers is {text[:80]!r}; give whole numbers, such as 1,2 or 1+2,2"
        ) from None
    if len(places) != len(adapters):
        raise click.UsageError(
            f"--layers {text[:80]} has {len(places)} entries; give one for each: {', '.join(adapters)}"
        )
    return dict(zip(adapters, places, strict=True))


def merge_option(text: str) -> tuple[str, str | int | float | bool | None]:
    """--option of a merge, "density=0.2", as name and value; what is no JSON is text."""
    key, equals, written = text.partition("=")
    if not (key and equals):
        raise click.UsageError(f"--option is {text!r}; give KEY=VALUE, such as density=0.2")
    try:
        value = json.loads(written)
    except json.JSONDecodeError:
        value = written
    except (ValueError, RecursionError):  # a number of 5,000 digits, a list in a list in a list ..
        raise click.UsageError(f"--option {key} is no value of an option: {written[:40]!r} ..") from None
    if not isinstance(value, str | int | float | bool | None):
        raise click.UsageError(
            f"--option {key} is {written[:40]}; give a number, true, false, null or a text"
        )
    return key, value
