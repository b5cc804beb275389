"""Command line of the measurements: `python -m llm_experiments list | run NAME | status DIR | ..`."""

from __future__ import annotations

from toytransformer import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import click

from llm_experiments.commands import adapters, data, diagnose, export, of_domains, pool, register, rows, runs
from toytransformer.command_line import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Measure on language models what the theory predicts: train adapters, merge them, ask."""


for command in (
    *(runs.list_names, runs.run_experiments, runs.status),
    *(rows.table, rows.keep, rows.results),
    *(adapters.check, diagnose.diagnose, pool.pool, adapters.merge),
    *(data.pretrain, export.export, register.register),
    *of_domains(),
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; a bad argument is one line on stderr and status 2."""
    run(cli, "python -m llm_experiments")


if __name__ == "__main__":
    main()
