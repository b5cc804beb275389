"""PEFT adapters on disk: `check` whether they can be merged, and `merge` them."""

from __future__ import annotations

from pathlib import Path

import click

from llm_experiments.commands.options import FOLDER
from toytransformer.command_line import RegularFile, merge_option, merge_weights, needs_extra

#: What merged adapters are written in.
PRECISIONS = ("float32", "bfloat16", "float16")


class Rank(click.ParamType):
    """A whole number of at least 1, or "all"."""

    name = "integer|all"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """The number or "all"."""
        if value == "all":
            return value
        return click.IntRange(min=1).convert(value, param, ctx)  # type: ignore[arg-type]


@click.command()
@click.argument("adapters", nargs=-1, required=True)
@click.option("--out", required=True, type=FOLDER, help="New folder for the merged adapter.")
@click.option("--rule", help="A static merge rule of the theory [mean].")
@click.option("--weights", help="Merge weights, by comma, one for each adapter.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the rule.")
@click.option("--recipe", type=RegularFile(), help="Rule, weights by layer and options, in TOML.")
@click.option(
    "--rank", type=Rank(), help="Rank to keep [all of factors, the adapters' largest of a dense result]."
)
@click.option("--loss", type=float, help="Keep the least rank with this relative loss, such as 0.01.")
@click.option("--dtype", type=click.Choice(PRECISIONS), default=PRECISIONS[0], show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="For rules that draw at random.")
@needs_extra("llm")
def merge(
    adapters: tuple[str, ...],
    out: Path,
    rule: str | None,
    weights: str | None,
    options: tuple[str, ...],
    recipe: Path | None,
    rank: int | str | None,
    loss: float | None,
    dtype: str,
    seed: int,
) -> None:
    """Merge adapters into one that plain PEFT loads.

    What each of the ADAPTERS may be, `check --help` says. A rule that adds or joins factors is kept whole.
    One that works on single entries leaves a matrix of full rank, and is cut to the adapters' largest rank
    unless --rank or --loss asks for another. Rank, relative loss and size are said before anything is
    written.
    """
    import sys

    from rich.console import Console

    from llm_experiments.adapters.compatible import compatibility
    from llm_experiments.adapters.peft_files import distinctly_named, opened
    from llm_experiments.merges.recipe import Recipe
    from llm_experiments.merges.saving import DTYPES, LARGEST, static_adapter
    from llm_experiments.models.files import printable
    from toytransformer.compositions import Merge
    from toytransformer.working import Bar

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise click.UsageError(f"--out '{out}' is there already: name a new folder")
    if recipe and (rule or weights or options):
        raise click.UsageError("--recipe says the rule, its weights and options: leave those out")
    if rank is not None and loss is not None:
        raise click.UsageError("--rank and --loss both say how much is kept: give one")
    library = distinctly_named([opened(source) for source in adapters], adapters)
    together = compatibility(library)
    together.require()
    if recipe:
        spec = Recipe.read(recipe).merge(library)
    else:
        spec = Merge(rule or "mean", merge_weights(weights), tuple(map(merge_option, options)))
    kept = LARGEST if rank is None else None if isinstance(rank, str) else rank
    with Bar(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
        task = bar.add_task("layers", total=None)
        merged = static_adapter(
            library,
            spec,
            seed=seed,
            rank=kept,
            loss=loss,
            dtype=DTYPES[dtype],
            tick=lambda done, every: bar.update(task, completed=done, total=every),
        )
    details = merged.details
    for note in together.notes:
        click.echo(printable(note))
    click.echo(
        f"rank {details['rank']}, relative loss {details['relative_error']:.2g}, "
        f"{details['bytes'] / 1e6:,.1f} MB in {dtype}"
    )
    merged.write(out, out.name)
    click.echo(f"{out}")


@click.command()
@click.argument("adapters", nargs=-1, required=True)
@click.option("--same-base", is_flag=True, help="Refuse adapters whose base has different names.")
@needs_extra("llm")
def check(adapters: tuple[str, ...], same_base: bool) -> int:
    """Check whether adapters can be merged, and fit together.

    Each of the ADAPTERS is a PEFT folder, a folder that holds one, a .safetensors file (PEFT, mlx-lm,
    kohya), an expert of mttl, or a hub id as org/name, org/name@revision or org/name:folder. Exit status 1
    if one is refused.
    """
    from llm_experiments.adapters.compatible import compatibility
    from llm_experiments.adapters.peft_files import AdapterError, AdapterWeights, distinctly_named, opened
    from llm_experiments.models.files import printable

    def say(verdict: str, text: str) -> None:
        click.echo(f"{verdict:<8} {printable(text)}")

    library: list[AdapterWeights] = []
    sources: list[str] = []
    refused = False
    for source in adapters:
        try:
            own = opened(source)
            for _ in own.modules.values():  # reads each, one at a time: are its numbers finite?
                pass
        except AdapterError as error:
            say("refused", f"{source}: {' '.join(str(error).split())}")
            refused = True
        else:
            library.append(own)
            sources.append(source)
            layout = "" if own.layout == "PEFT" else f", {own.layout}"
            say("fine", f"{source}: rank {own.rank}, {len(own.modules)} modules, base {own.base}{layout}")
    if len(library) > 1:
        together = compatibility(distinctly_named(library, sources), same_base=same_base)
        for problem in together.problems:
            say("refused", f"together: {problem}")
        if not together.problems:
            say("fine", "together")
        for note in together.notes:
            say("note", note)
        refused = refused or bool(together.problems)
    return int(refused)
