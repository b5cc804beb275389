"""`python -m figures theory` draws; `python -m figures report` puts ledger and figures on one page."""

from pathlib import Path

import click


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
    "--format",
    "formats",
    type=click.Choice(["png", "svg"]),
    multiple=True,
    default=("png", "svg"),
    show_default=True,
    help="Repeat for several.",
)
def theory(out: Path, formats: tuple[str, ...]) -> None:
    """Draw every figure of the theory."""
    from figures.theory import make_all

    make_all(out, formats)
    click.echo(f"figures in {out}")


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
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("out/report.html"),
    show_default=True,
)
def report(ledger: Path, drawings: Path | None, out: Path) -> None:
    """Write one self-contained page: the ledger, the figures, where they come from."""
    from figures.report import ReportError, write

    try:
        failed = write(out, ledger, drawings)
    except ReportError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"report in {out} ({failed} failed)" if failed else f"report in {out} (every claim holds)")


if __name__ == "__main__":
    main(prog_name="python -m figures")
