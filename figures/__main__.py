"""`python -m figures theory` draws; `python -m figures report` puts ledger and figures on one page."""

import os
from pathlib import Path

import click

from toytransformer.command_line import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Draw the figures and write the report."""


@main.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("out/figures"),
    show_default=True,
    help="Folder for the drawings.",
)
@click.option(
    "--rows",
    "rows_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of rows to draw, or with --fresh to write; without it the committed rows are drawn.",
)
@click.option("--fresh", is_flag=True, help="Compute the rows anew and draw those.")
@click.option(
    "--format",
    "formats",
    default="png,svg",
    show_default=True,
    help="png, svg or both, by comma.",
)
def theory(out: Path, rows_file: Path | None, fresh: bool, formats: str) -> None:
    """Draw every figure of the theory."""
    kinds = tuple(formats.split(","))
    if unknown := set(kinds) - {"png", "svg"}:
        raise click.BadParameter(f"{sorted(unknown)[0]!r} is not among png, svg", param_hint="--format")
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
    from figures.theory import draw_all

    try:
        draw_all(found, out, kinds)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"figures in {out}")


def _computed_rows() -> list[dict]:
    """Every row anew, under a progress bar."""
    # Small matrices by the hundred: BLAS threads wait for each other longer than they work. Read at import.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from figures import rows

    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("rows", total=None)
        return rows.compute(
            tick=lambda part, done, jobs: bar.update(task, description=part, completed=done, total=jobs)
        )


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
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("out/report.html"),
    show_default=True,
    help="File to write.",
)
def report(ledger: Path, drawings: Path | None, rows_file: Path | None, out: Path) -> None:
    """Write one self-contained page: what composes, the figures, the ledger, where they come from."""
    from figures import store
    from figures.report import write

    try:
        failed = write(out, ledger, drawings, rows_file or store.COMMITTED)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"report in {out} ({failed} failed)" if failed else f"report in {out} (every claim holds)")


if __name__ == "__main__":
    run(main, "python -m figures")
