"""The doctor: `diagnose` says how adapters lie to one another, and what their merges would do."""

from __future__ import annotations

import json
from pathlib import Path

import click

from llm_experiments.commands.options import FOLDER
from toytransformer.command_line import needs_extra


@click.command()
@click.argument("adapters", nargs=-1, required=True, type=FOLDER)
@click.option("--json", "json_file", type=FOLDER, help="Write everything to FILE; - is the terminal.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of samples, masks and gauges.")
@needs_extra("llm")
def diagnose(adapters: tuple[Path, ...], json_file: Path | None, seed: int) -> int:
    """Show how adapters lie to one another, and what merges keep.

    From their weights alone: sizes, angles, shared spaces, duplicates and opposites, what each static rule
    keeps of each adapter, and where their weight is. Exit status 1 if something speaks against merging them
    as they are.
    """
    import sys

    from rich.console import Console

    from llm_experiments.adapters.peft_files import distinctly_named, read
    from llm_experiments.diagnose import tables
    from llm_experiments.diagnose.findings import findings
    from llm_experiments.diagnose.library import measure
    from toytransformer.compositions import replace_file
    from toytransformer.compositions.io import require_writable
    from toytransformer.working import Bar

    to_terminal = json_file is not None and str(json_file) == "-"
    if json_file and not to_terminal:
        require_writable(json_file)
    library = distinctly_named([read(folder) for folder in adapters], adapters)
    with Bar(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
        task = bar.add_task("modules", total=None)
        geometry = measure(
            library, seed=seed, tick=lambda done, every: bar.update(task, completed=done, total=every)
        )
    found = findings(geometry)
    text = json.dumps(tables.to_dict(geometry, found), indent=1, allow_nan=False) + "\n"
    if json_file and not to_terminal:
        replace_file(json_file, [text])
    if to_terminal:
        click.echo(text, nl=False)
    else:
        tables.show(Console(highlight=False), geometry, found)
    return int(any(finding.against for finding in found))
