"""Command line of the predictors: `python -m predictors agreement`."""

from __future__ import annotations

from pathlib import Path

import click

from toytransformer.command_line import needs_extra, run

FOLDER = click.Path(path_type=Path)
#: The kept rows and what was read off their bases, beside the code.
DATA = Path(__file__).parents[1] / "llm_experiments" / "data"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Set what is predicted of merged models beside what was measured."""


@cli.command()
@click.argument("folders", nargs=-1, type=FOLDER)
@click.option("--tiers", default="T0,T1,T2", show_default=True, help="Predictors, by comma.")
@click.option("--kept", type=FOLDER, help="Predictions to read and add to [those committed].")
@click.option("--fresh", is_flag=True, help="Compute the predictions anew.")
@click.option("--cells", "each", is_flag=True, help="What every predictor says of every cell instead.")
@click.option("--form", type=click.Choice(["terminal", "csv", "json"]), default="terminal", show_default=True)
@needs_extra("results")
def agreement(
    folders: tuple[Path, ...], tiers: str, kept: Path | None, fresh: bool, each: bool, form: str
) -> None:
    """Compare predicted with measured cells, tier by tier.

    FOLDERS hold rows and the features of their bases [those kept beside the code]. Predictions that lack are
    computed and kept. Of merged cells: rank correlation, majority and error, and two plain guesses beside.
    Cells of domains without compositions, of which T3 alone speaks, stand below, by domain.
    """
    import jax

    from predictors import PREDICTORS, forms, parts, registered
    from predictors import agreement as comparing
    from predictors import tiers as keeping
    from results import frame as frames
    from results.files import is_folder_of_rows

    names = tiers.split(",")
    if unknown := [name for name in names if name not in PREDICTORS]:
        raise click.UsageError(f"there is no predictor {unknown[0]!r}: choose {', '.join(PREDICTORS)}")
    path = kept or keeping.COMMITTED
    lines = [] if fresh else keeping.read(path)
    sources = folders or [*filter(is_folder_of_rows, sorted(DATA.iterdir())), *registered.folders()]
    cells, apart = [], []
    with jax.enable_x64(True):
        for folder in sources:
            frame = frames.read(folder)
            every = frame.groups()
            own = [cell for cell in every if comparing.plain(cell)]
            apart += parts.lines(parts.predicted(every))
            wanted = keeping.wanted(own, frame, folder, DATA)
            before = len(lines)
            lines = keeping.complete(wanted, lines, names)
            click.echo(f"{folder.name}: {len(wanted)} compositions, {len(lines) - before} computed", err=True)
            cells += own
            if len(lines) > before:
                keeping.write(path, lines)
    by_key = {keeping.key(line): line for line in (*lines, *apart)}
    if each:
        said = comparing.by_cell(cells, names, by_key, keeping.limits())
        writers = {"csv": forms.cells_as_csv, "json": forms.cells_as_json}
        click.echo(writers.get(form, forms.cells_as_text)(said), nl=False)
        return
    found = comparing.table(cells, names, by_key, keeping.limits())
    click.echo({"csv": forms.as_csv, "json": forms.as_json}.get(form, forms.as_text)(found), nl=False)


def main() -> None:
    """Run the command line; a bad argument is one line on stderr and status 2."""
    run(cli, "python -m predictors")


if __name__ == "__main__":
    main()
