"""What the command lines of all packages share: how they end, and what a bad argument looks like."""

from __future__ import annotations

import sys
from typing import NoReturn

import click


def run(command: click.Command, name: str) -> NoReturn:
    """Run a command and exit with its status; a bad argument is one line on stderr and status 2.

    What the library refuses (ValueError, MemoryError) and files that cannot be read or written (OSError) are
    bad arguments too. Without any argument, the help is shown.
    """
    try:
        status = command.main(prog_name=name, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(130)
    except (click.ClickException, ValueError, MemoryError, OSError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)
