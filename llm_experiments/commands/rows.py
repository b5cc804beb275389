"""Measured rows: in a `table`, kept beside the code (`keep`), and on the project's pages (`results`)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
from rich.console import Console

from llm_experiments.commands.options import FOLDER
from toytransformer.command_line import RegularFile, needs_extra

#: The kept rows, beside the code.
DATA = Path(__file__).parents[1] / "data"
#: How many kept answers are read anew in a second.
ANSWERS_A_SECOND = 5000


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
@click.argument("old", type=FOLDER)
@click.argument("new", type=FOLDER)
@click.option("--world", type=RegularFile(), help="world.json of a base whose facts are known.")
@click.option(
    "--links", type=RegularFile(), help="JSON: the adapters of each cell, where OLD is no run's folder."
)
@needs_extra("llm")
def migrate(old: Path, new: Path, world: Path | None, links: Path | None) -> None:
    """Write rows of earlier code as today's.

    OLD is a NAME.jsonl.gz or a run's folder, NEW a folder to write.
    """
    from llm_experiments import migrate as carrying
    from llm_experiments.embedded.corpus import BaseWorld
    from results import files

    linked = None if links is None else _links(links)
    known = None if world is None else BaseWorld.read(world)
    for path in files.write(new, carrying.migrate(old, links=linked, world=known)):
        click.echo(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")


def _links(path: Path) -> dict[str, tuple[str, ...]]:
    """The adapters of each cell, as a JSON object of lists of their addresses."""
    from llm_experiments.models.files import read_json

    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(value, list) for value in content.values()):
        raise click.UsageError(f"--links '{path}' is no JSON object of lists of addresses")
    return {cell: tuple(map(str, adapters)) for cell, adapters in content.items()}


@click.command()
@click.argument("names", nargs=-1)
@click.option("--data", type=FOLDER, default=DATA, help="Where the kept rows are [data/ here].")
@click.option(
    "--world", type=RegularFile(), help="world.json of a base whose facts are known [the embedded model's]."
)
@needs_extra("llm")
def rescore(names: tuple[str, ...], data: Path, world: Path | None) -> None:
    """Read kept answers anew.

    NAMES are folders of kept rows, all of them unless some are given. Texts stay; answers, outcomes and marks
    are what today's scorer says, and the old answer is what the base says to that very item.
    """
    from llm_experiments import rescore as reading
    from llm_experiments.embedded.corpus import BaseWorld
    from llm_experiments.models.sources import EMBEDDED
    from results import files
    from toytransformer.cost import in_words
    from toytransformer.working import working

    known = BaseWorld.read(world or EMBEDDED / "world.json")
    folders = [data / name for name in names] or sorted(f for f in data.iterdir() if f.is_dir())
    for folder in folders:
        kept = files.read(folder)
        seconds = len(kept.rows) / ANSWERS_A_SECOND
        scored = working(partial(reading.rescored, kept, known), folder.name, seconds, in_words(seconds))
        files.write(folder, scored)
        click.echo(folder.name)


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
