"""PEFT adapters on disk: `check` whether they can be merged, and `merge` them."""

from __future__ import annotations

from pathlib import Path

import click

from llm_experiments.commands.options import FOLDER
from toytransformer.command_line import merge_option, merge_weights, needs_extra


@click.command()
@click.argument("adapters", nargs=-1, required=True, type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="New folder for the merged adapter.")
@click.option("--rule", default="mean", show_default=True, help="A static merge rule of the theory.")
@click.option("--weights", help="Merge weights, by comma, one for each adapter.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the rule.")
@click.option("--rank", type=click.IntRange(min=1), help="Keep this rank [all that is there].")
@click.option("--seed", type=int, default=0, show_default=True, help="For rules that draw at random.")
@needs_extra("llm")
def merge(
    adapters: tuple[Path, ...],
    out: Path,
    rule: str,
    weights: str | None,
    options: tuple[str, ...],
    rank: int | None,
    seed: int,
) -> None:
    """Merge PEFT adapters into one that plain PEFT loads."""
    from llm_experiments.adapters.peft_files import distinctly_named, read
    from llm_experiments.merges.merging import save_static
    from toytransformer.compositions import Merge

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise click.UsageError(f"--out '{out}' is there already: name a new folder")
    spec = Merge(rule, merge_weights(weights), tuple(map(merge_option, options)))
    library = distinctly_named([read(folder) for folder in adapters], adapters)
    details = save_static(library, spec, out, seed=seed, rank=rank, name=out.name)
    for name, count in details.get("absent", {}).items():
        click.echo(f"{name} does not change {count} of {len(details['modules'])} layers: zero there")
    click.echo(f"{out}: rank {details['rank']}, relative error {details['relative_error']:.2g}")


@click.command()
@click.argument("adapters", nargs=-1, required=True, type=FOLDER)
@needs_extra("llm")
def check(adapters: tuple[Path, ...]) -> int:
    """Check whether adapters can be merged, and fit together.

    Each of the ADAPTERS is a PEFT folder. Exit status 1 if one is refused.
    """
    from llm_experiments.adapters.peft_files import AdapterWeights, check_library, distinctly_named, read
    from llm_experiments.models.files import printable
    from toytransformer.adapters import AdapterError

    library: list[AdapterWeights] = []
    folders: list[Path] = []
    refused = False
    for folder in adapters:
        try:
            library.append(read(folder))
        except AdapterError as error:
            click.echo(printable(f"refused  {folder}: {' '.join(str(error).split())}"))
            refused = True
        else:
            own = library[-1]
            folders.append(folder)
            shape = f"rank {own.rank}, {len(own.modules)} modules, base {own.base}"
            click.echo(printable(f"fine     {folder}: {shape}"))
    if len(library) > 1:
        try:
            check_library(distinctly_named(library, folders))
        except AdapterError as error:
            click.echo(printable(f"refused  together: {' '.join(str(error).split())}"))
            refused = True
        else:
            click.echo("fine     together")
    return int(refused)
