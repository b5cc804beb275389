"""Measured rows: in a `table`, kept beside the code (`keep`), and on the project's pages (`results`)."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from llm_experiments.commands.options import DATA, FOLDER
from toytransformer.command_line import needs_extra


@click.command()
@click.argument("source", type=FOLDER)
@click.option("--experiment", help="Only the rows of this experiment.")
@click.option(
    "--form",
    type=click.Choice(["terminal", "markdown", "csv", "json"]),
    default="terminal",
    show_default=True,
)
@click.option("--compare/--no-compare", default=True, help="Paired tests on the same questions.")
@needs_extra("llm")
def table(source: Path, experiment: str | None, form: str, compare: bool) -> None:
    """Print tables of measured rows.

    SOURCE is a run's folder, or one of kept rows.
    """
    from llm_experiments import keep as keeping
    from results import forms, frame, tables

    measured = frame.read(keeping.lines(source, experiment))
    cells = measured.groups()
    others = measured.edits
    entries = tables.entries(cells, experiment=experiment)
    compared = tables.comparisons(cells) if compare else []
    if form == "json":
        click.echo(forms.as_json(entries, compared, others), nl=False)
    elif form == "csv":
        click.echo(forms.as_csv(entries), nl=False)
    else:
        grids = forms.grids(entries, compared) + forms.other_rows(others)
        if form == "markdown":
            click.echo(forms.markdown(grids), nl=False)
        else:
            forms.print_rich(grids, Console(highlight=False))
        if not grids:
            click.echo(f"no rows in '{source}' yet", err=True)


@click.command()
@click.argument("folder", type=FOLDER)
@click.argument("name")
@click.option("--out", type=FOLDER, default=DATA, help="Where to [data/ here].")
@needs_extra("llm")
def keep(folder: Path, name: str, out: Path) -> None:
    """Keep the rows of a run beside the code.

    What FOLDER holds is added to the folder NAME: rows, items, specs, how adapters and sweeps came out.
    """
    from llm_experiments.keep import keep as keep_rows

    for path in keep_rows(folder, name, out):
        click.echo(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")


@click.command()
@needs_extra("llm")
def results() -> None:
    """Write the pages whose numbers are read off the kept rows."""
    from llm_experiments.pages import PAGES, render
    from toytransformer.compositions import replace_file

    if missing := [template for template in PAGES.values() if not template.is_file()]:
        raise click.UsageError(
            f"'{missing[0]}' is not there: the pages are written in a checkout of the repository"
        )
    for page, template in PAGES.items():
        replace_file(page, [render(template)])
        click.echo(page.name)
