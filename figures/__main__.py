"""`python -m figures NAME` draws one figure, `all` draws every one, `report` puts them on one page."""

import os
import sys
from pathlib import Path

import click

from toytransformer.command_line import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Draw the figures: one by name, or all."""


#: Drawings of theory beside measurement, by name: the modules of figures.measured.
MEASURED = {
    "answers": "What is answered, toy against language model, by library, merge rule and knowledge.",
    "agreement": "Predicted margin against measured share, one dot a cell.",
    "tables": "The paper's tables beside the toy's prediction and our measurement.",
    "weights": "Survival of one hop against its merge weight.",
    "mixture": "Log-probability of z, y and the old answer as the second adapter is scaled.",
    "layers": "A language model's own c1, c2 and leak, layer by layer.",
    "factors": "Factor-wise merging by gauge and initial factors.",
    "bridges": "Bridge setups 0 to 8, models side by side.",
}
#: Drawings of the theory alone.
THEORY = ("convergence", "outcomes", "survival", "gauge", "leak")


def _formats(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if unknown := set(kinds) - set(KINDS):
        raise click.BadParameter(f"{sorted(unknown)[0]!r} is not among {', '.join(KINDS)}")
    return kinds


KINDS = ("png", "svg", "pdf")
OUT = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("out/figures"),
    show_default=True,
    help="Folder for the drawings.",
)
FORMATS = click.option(
    "--format",
    "formats",
    default="png,svg",
    show_default=True,
    callback=_formats,
    help="Some of png, svg and pdf, by comma.",
)
RUNS = click.option(
    "--from",
    "runs",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Measured rows: a run's folder or its rows.jsonl.gz; give several. Default: those committed.",
)
RUN = click.option(
    "--run",
    "ran",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="A run of this machine beside the committed rows; give several.",
)
TOY = click.option(
    "--toy",
    "toy_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the toy's predictions to read, or with --fresh to write. Default: those committed.",
)
FRESH = click.option("--fresh", is_flag=True, help="Compute the predictions anew, not only those that lack.")


@main.command()
@OUT
@click.option(
    "--rows",
    "rows_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of rows to draw, or with --fresh to write; without it the committed rows are drawn.",
)
@click.option("--fresh", is_flag=True, help="Compute the rows anew and draw those.")
@click.option("--draw/--no-draw", default=True, help="Without drawing, the rows are only computed.")
@FORMATS
def theory(out: Path, rows_file: Path | None, fresh: bool, formats: tuple[str, ...], draw: bool) -> None:
    """Draw every figure of the theory."""
    from figures import store

    if fresh or (rows_file is None and not store.COMMITTED.exists()):
        found = _computed_rows()
        if rows_file:
            store.write(rows_file, found)
        click.echo(f"{len(found)} rows computed" + (f", kept in {rows_file}" if rows_file else ""))
    else:
        source = rows_file or store.COMMITTED
        try:
            found = store.read(source)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        click.echo(
            f"{len(found)} rows read from {_shown(source)}, computed at {found[0]['provenance']['git'][:12]}"
        )
    if not draw:
        return
    from figures.theory import draw_all

    try:
        draw_all(found, out, formats)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"figures in {out}")


def _theory_drawing(name: str) -> click.Command:
    """The command of one drawing of the theory, from the committed rows."""

    @click.command(name, help=f"The theory alone: {name}.")
    @OUT
    @FORMATS
    def draw(out: Path, formats: tuple[str, ...]) -> None:
        from figures import store
        from figures.theory import draw_all

        rows = [row for row in store.read(store.COMMITTED) if row["figure"] == name]
        draw_all(rows, out, formats, (name,))
        click.echo(f"{name} in {out}")

    return draw


def _measured_drawing(name: str, about: str) -> click.Command:
    """The command of one drawing of theory beside measurement."""

    @click.command(name, help=about)
    @RUNS
    @TOY
    @FRESH
    @OUT
    @FORMATS
    def draw(runs, toy_file, fresh, out, formats) -> None:
        from figures.measured import save

        cells, edits = _joined(runs, toy_file, fresh)
        save(name, cells, edits, out, formats)
        click.echo(f"{name} in {out}")

    return draw


@main.command(name="all")
@RUNS
@RUN
@TOY
@FRESH
@click.option(
    "--rows",
    "rows_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of rows behind the drawings of the theory; without it the committed one.",
)
@OUT
@FORMATS
@click.pass_context
def draw_all_of_them(context: click.Context, runs, ran, toy_file, fresh, rows_file, out, formats) -> None:
    """Draw everything; what the rows hold nothing for is named and left out."""
    from figures.measured import NothingToDrawError, save

    context.invoke(theory, out=out, rows_file=rows_file, formats=formats)
    cells, edits = _joined(runs, toy_file, fresh, ran)
    for name in MEASURED:
        try:
            save(name, cells, edits, out, formats)
        except NothingToDrawError as error:
            click.echo(f"not drawn: {error}")
    click.echo(f"figures in {out}")


def _joined(
    runs: tuple[Path, ...], toy_file: Path | None, fresh: bool, ran: tuple[Path, ...] = ()
) -> tuple[list, list]:
    """The measured cells with their predictions, and the rows on closed-form edits.

    ran: runs of which only those cells are taken that `runs` have not.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from figures import store
    from figures.measured import cells, toy

    paths = list(runs) or cells.committed()
    found, edits = cells.read(paths)
    for path in ran:
        there = {(cells.nameless(cell.place), cell.seeds) for cell in found}
        more, more_edits = cells.read([path])
        found += [cell for cell in more if (cells.nameless(cell.place), cell.seeds) not in there]
        edited = {(edit.get("model"), edit.get("dataset")) for edit in edits}
        edits += [edit for edit in more_edits if (edit.get("model"), edit.get("dataset")) not in edited]
        paths.append(path)
    kept = [] if fresh else toy.read(toy_file or toy.COMMITTED)
    with _bar() as bar:
        task = bar.add_task("predictions", total=None, visible=False)
        joined, rows = toy.join(
            found, kept, tick=lambda done, all_: bar.update(task, completed=done, total=all_, visible=True)
        )
    if fresh and toy_file:
        store.write(toy_file, rows)
    click.echo(
        f"{sum(cell.items for cell in found):,} rows in {len(found):,} cells from "
        f"{', '.join(map(_shown, paths))}; "
        f"{len(rows)} predictions, {toy.lacking(rows, kept)} of them computed now"
    )
    return joined, edits


def _computed_rows() -> list[dict]:
    """Every row anew, under a progress bar."""
    # Small matrices by the hundred: BLAS threads wait for each other longer than they work. Read at import.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from figures import rows

    with _bar() as bar:
        task = bar.add_task("rows", total=None)
        return rows.compute(
            tick=lambda part, done, jobs: bar.update(task, description=part, completed=done, total=jobs)
        )


def _bar():
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns)


def _shown(path: Path) -> str:
    """The path from the current folder where it lies below it."""
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)


@main.command()
@click.option(
    "--ledger",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Rows written by `python -m toytransformer verify --json FILE`.",
)
@click.option(
    "--figures",
    "drawings",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of SVG or PNG drawings; without it the page has none.",
)
@click.option(
    "--rows",
    "rows_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of rows behind the drawings; without it the committed one.",
)
@RUN
@TOY
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("out/report.html"),
    show_default=True,
    help="File to write.",
)
def report(
    ledger: Path,
    drawings: Path | None,
    rows_file: Path | None,
    ran: tuple[Path, ...],
    toy_file: Path | None,
    out: Path,
) -> None:
    """Write one page of all that is predicted and measured.

    It holds what composes, the ledger, the figures, the cells and where they come from, and loads nothing.

    Exit status 1 if a claim fails, or a run differs from the committed rows beyond chance or holds nothing.
    """
    from figures import store
    from figures.measured import toy
    from figures.report import gather, sources, write

    measured = sources.committed()
    try:
        with _bar() as bar:
            task = bar.add_task("predictions", total=None, visible=False)
            content = gather(
                ledger,
                drawings,
                rows_file or store.COMMITTED,
                toy_file or toy.COMMITTED,
                measured,
                ran,
                tick=lambda done, all_: bar.update(task, completed=done, total=all_, visible=True),
            )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    write(out, content)
    for told in content.told():
        click.echo(told)
    click.echo(f"report in {out}")
    if content.failures:
        sys.exit(1)


for _name in THEORY:
    main.add_command(_theory_drawing(_name))
for _name, _about in MEASURED.items():
    main.add_command(_measured_drawing(_name, _about))

if __name__ == "__main__":
    run(main, "python -m figures")
