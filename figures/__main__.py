"""`python -m figures NAME` draws one figure, `all` draws every one, `report` puts them on one page."""

from __future__ import annotations

from toytransformer import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toytransformer.command_line import RegularFile, needs_extra, run

if TYPE_CHECKING:
    from rich.progress import Progress

    from figures.registry import Data, Drawing
    from figures.store import Row


def _one_thread() -> None:
    """Let BLAS have one thread, unless the user says otherwise; before NumPy is imported, which reads that.

    Predictions are small matrices by the hundred, over which threads wait for each other longer than they
    work, and where singular values tie their digits depend on how many there are.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@needs_extra("figures")
def _registered() -> dict[str, Drawing]:
    """Every figure by name."""
    _one_thread()
    from figures import registry

    return registry.figures()


class _Figures(click.Group):
    """A group with a command for every registered figure; their files are imported once they are needed."""

    def list_commands(self, context: click.Context) -> list[str]:
        try:
            drawings = list(_registered())
        except click.UsageError:  # the extra is not installed: the help says so instead
            drawings = []
        return sorted([*super().list_commands(context), *drawings])

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_commands(context, formatter)
        if set(self.list_commands(context)) == set(self.commands):
            with formatter.section("Figures"):
                formatter.write_text("One command each, once installed: pip install 'lora-limits[figures]'.")

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if command := super().get_command(context, name):
            return command
        drawing = _registered().get(name)
        return _drawing(drawing) if drawing else None


@click.group(cls=_Figures, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Draw the figures: one by name, or all."""
    _one_thread()


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
    help="Measured rows: a run's folder, or one of kept rows; give several. Default: those committed.",
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
@needs_extra("figures")
def theory(out: Path, rows_file: Path | None, fresh: bool, formats: tuple[str, ...], draw: bool) -> None:
    """Draw every figure of the theory."""
    from figures import store

    if fresh or (rows_file is None and not store.COMMITTED.exists()):
        rows = _computed_rows()
        if rows_file:
            store.write(rows_file, rows)
        click.echo(f"{len(rows)} rows computed" + (f", kept in {rows_file}" if rows_file else ""))
    else:
        source = rows_file or store.COMMITTED
        try:
            rows = store.read(source)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        click.echo(
            f"{len(rows)} rows read from {_relative(source)}, computed at {rows[0]['provenance']['git'][:12]}"
        )
    if not draw:
        return
    from figures.registry import Data

    data = Data(theory=_by_figure(rows))
    try:
        for drawing in _registered().values():
            if not drawing.measured:
                drawing.save(data, out, formats)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"figures in {out}")


def _by_figure(rows: Iterable[Row]) -> dict[str, list[Row]]:
    by: dict[str, list[Row]] = {}
    for row in rows:
        by.setdefault(row["figure"], []).append(row)
    return by


def _drawing(drawing: Drawing) -> click.Command:
    """The command of one figure, from the committed rows or, if it is a measured one, from those given."""

    def draw(
        out: Path,
        formats: tuple[str, ...],
        runs: tuple[Path, ...] = (),
        toy_file: Path | None = None,
        fresh: bool = False,
    ) -> None:
        from figures import store
        from figures.registry import Data

        try:
            if drawing.measured:
                data = read(runs, toy_file, fresh)
            else:
                data = Data(theory=_by_figure(store.read(store.COMMITTED)))
            drawing.save(data, out, formats)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        click.echo(f"{drawing.name} in {out}")

    for option in (FORMATS, OUT, *((FRESH, TOY, RUNS) if drawing.measured else ())):
        draw = option(draw)
    return click.command(drawing.name, help=f"{drawing.title}.\n\n{drawing.caption}")(draw)


@main.command(name="all")
@RUNS
@RUN
@TOY
@FRESH
@click.option(
    "--rows",
    "rows_file",
    type=RegularFile(),
    help="File of rows behind the drawings of the theory; without it the committed one.",
)
@OUT
@FORMATS
@click.pass_context
@needs_extra("figures")
def draw_all(
    context: click.Context,
    runs: tuple[Path, ...],
    ran: tuple[Path, ...],
    toy_file: Path | None,
    fresh: bool,
    rows_file: Path | None,
    out: Path,
    formats: tuple[str, ...],
) -> None:
    """Draw everything; what the rows hold nothing for is named and left out."""
    from figures.registry import NothingToDrawError

    context.invoke(theory, out=out, rows_file=rows_file, formats=formats)
    data = read(runs, toy_file, fresh, ran)
    for drawing in _registered().values():
        if drawing.measured:
            try:
                drawing.save(data, out, formats)
            except NothingToDrawError as error:
                click.echo(f"not drawn: {error}")
    click.echo(f"figures in {out}")


def read(runs: Sequence[Path], toy_file: Path | None, fresh: bool, ran: Sequence[Path] = ()) -> Data:
    """The measured cells with their predictions, the rows on closed-form edits, and pools of adapters.

    ran: runs of which only those cells are taken that `runs` have not.
    """
    from figures import predictions, reading, store
    from figures.registry import Data
    from results import frame as frames

    paths = list(runs) or reading.committed()
    frame = reading.with_runs(frames.read(*paths), map(frames.read, ran))
    kept = [] if fresh else predictions.read(toy_file or predictions.COMMITTED)
    with _bar() as bar:
        task = bar.add_task("predictions", total=None, visible=False)
        rows = reading.predict(
            [frame], kept, lambda done, all_: bar.update(task, completed=done, total=all_, visible=True)
        )
    if fresh and toy_file:
        store.write(toy_file, rows)
    measured = reading.measured(frame, rows)
    click.echo(
        f"{len(frame.rows):,} rows in {len(measured.cells):,} cells from "
        f"{', '.join(map(_relative, (*paths, *ran)))}; "
        f"{len(rows)} predictions, {predictions.lacking(rows, kept)} of them computed now"
    )
    return Data(cells=measured.cells, edits=measured.edits, pools=reading.pools(runs))


def _computed_rows() -> list[Row]:
    """Every row anew, under a progress bar."""
    from figures import theory as computed

    names = [drawing.name for drawing in _registered().values() if not drawing.measured]
    parts = [(name, job) for name in names for job in computed.jobs(name)]
    with _bar() as bar:
        task = bar.add_task("rows", total=len(parts))
        return computed.compute(
            parts, lambda part, done, jobs: bar.update(task, description=part, completed=done)
        )


def _bar() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    from toytransformer.working import Bar

    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Bar(*columns)


def _relative(path: Path) -> str:
    """The path from the current folder where it lies below it."""
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)


@main.command()
@click.option(
    "--ledger",
    type=RegularFile(),
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
    type=RegularFile(),
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
@needs_extra("figures")
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
    from figures import predictions, reading, store
    from figures.report import gather, write

    measured = reading.committed()
    try:
        with _bar() as bar:
            task = bar.add_task("predictions", total=None, visible=False)
            content = gather(
                ledger,
                drawings,
                rows_file or store.COMMITTED,
                toy_file or predictions.COMMITTED,
                measured,
                ran,
                tick=lambda done, all_: bar.update(task, completed=done, total=all_, visible=True),
            )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    write(out, content)
    for sentence in content.sentences():
        click.echo(sentence)
    click.echo(f"report in {out}")
    if content.failures:
        sys.exit(1)


if __name__ == "__main__":
    run(main, "python -m figures")
