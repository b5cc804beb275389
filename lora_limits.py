"""The command `lora-limits`: the commands of all packages under one name, each loaded when it is called."""

from __future__ import annotations

import os
import sys

from toytransformer import interrupts

if __name__ == "__main__" or os.path.basename(sys.argv[0]).startswith("lora-limits"):  # its installed script
    interrupts.end_at_once()

from importlib import import_module
from typing import NamedTuple

import click

from toytransformer.command_line import run


class Section(NamedTuple):
    """A package's commands: where its click group is, and under which names they are found here."""

    module: str
    attribute: str
    commands: dict[str, str]  # name here: name there, or "" for the group itself


#: What `lora-limits --help` lists, under these headings and in this order.
SECTIONS = {
    "Theory": Section(
        "toytransformer.__main__", "cli", {"predict": "predict", "list": "list", "verify": "verify"}
    ),
    "Your adapters": Section(
        "llm_experiments.__main__", "cli", {name: name for name in ("check", "diagnose", "pool", "merge")}
    ),
    "Measurements on language models": Section(
        "llm_experiments.__main__",
        "cli",
        {
            "experiments": "list",
            **{
                name: name
                for name in (
                    "run",
                    "status",
                    "table",
                    "keep",
                    "migrate",
                    "rescore",
                    "results",
                    "export",
                    "pretrain",
                    "features",
                    "register",
                )
            },
        },
    ),
    "Figures": Section("figures.__main__", "main", {"figures": "", "report": "report"}),
}


class Commands(click.Group):
    """The commands of SECTIONS; a package is imported when one of its commands is called or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for group in SECTIONS.values() for name in group.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for group in SECTIONS.values():
            if cmd_name in group.commands:
                commands: click.Group = getattr(import_module(group.module), group.attribute)
                there = group.commands[cmd_name]
                return commands.commands[there] if there else commands
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(ctx)))
        for heading, group in SECTIONS.items():
            with formatter.section(heading):
                found = ((name, self.get_command(ctx, name)) for name in group.commands)
                rows = [
                    (f"{name:<{width}}", command.get_short_help_str(limit=65))
                    for name, command in found
                    if command
                ]
                formatter.write_dl(rows)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lora-limits")
def cli() -> None:
    """What a model says after LoRA adapters are added, averaged or routed: predicted and measured."""


def main() -> None:
    """Run the command line; a bad argument is one line on stderr and status 2."""
    run(cli, "lora-limits")


if __name__ == "__main__":
    main()
