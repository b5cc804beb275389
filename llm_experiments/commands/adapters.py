"""PEFT adapters on disk: `check` whether they can be merged, and `merge` them."""

from __future__ import annotations

from pathlib import Path

import click

from llm_experiments.commands.options import FOLDER
from toytransformer.command_line import merge_option, merge_weights, needs_extra


@click.command()
@click.argument("adapters", nargs=-1, required=True)
@click.option("--out", required=True, type=FOLDER, help="New folder for the merged adapter.")
@click.option("--rule", default="mean", show_default=True, help="A static merge rule of the theory.")
@click.option("--weights", help="Merge weights, by comma, one for each adapter.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the rule.")
@click.option("--rank", type=click.IntRange(min=1), help="Keep this rank [all that is there].")
@click.option("--seed", type=int, default=0, show_default=True, help="For rules that draw at random.")
@needs_extra("llm")
def merge(
    adapters: tuple[str, ...],
    out: Path,
    rule: str,
    weights: str | None,
    options: tuple[str, ...],
    rank: int | None,
    seed: int,
) -> None:
    """Merge adapters into one that plain PEFT loads; `check` says what each of the ADAPTERS may be."""
    from llm_experiments.adapters.compatible import compatibility
    from llm_experiments.adapters.peft_files import distinctly_named, opened
    from llm_experiments.merges.merging import save_static
    from llm_experiments.models.files import printable
    from toytransformer.compositions import Merge

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise click.UsageError(f"--out '{out}' is there already: name a new folder")
    spec = Merge(rule, merge_weights(weights), tuple(map(merge_option, options)))
    library = distinctly_named([opened(source) for source in adapters], adapters)
    together = compatibility(library)
    together.require()
    details = save_static(library, spec, out, seed=seed, rank=rank, name=out.name)
    for note in together.notes:
        click.echo(printable(note))
    click.echo(f"{out}: rank {details['rank']}, relative error {details['relative_error']:.2g}")


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
