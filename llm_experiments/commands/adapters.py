"""PEFT adapters on disk: `check` whether they can be merged, and `merge` them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llm_experiments.commands import options
from llm_experiments.commands.options import FOLDER
from toytransformer.command_line import RegularFile, merge_option, merge_weights, needs_extra

if TYPE_CHECKING:
    from llm_experiments.adapters.peft_files import AdapterWeights
    from llm_experiments.merges.merging import FittedMerge
    from llm_experiments.models.shapes import BaseShapes
    from toytransformer.compositions import Merge

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
@options.adapters_argument
@click.option("--out", required=True, type=FOLDER, help="New folder for the merged adapter.")
@click.option("--rule", help="A static merge rule of the theory [mean].")
@click.option("--weights", help="Merge weights, by comma, one for each adapter.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the rule.")
@click.option("--recipe", type=RegularFile(), help="Rule, weights by layer and options, in TOML.")
@click.option(
    "--fit", type=RegularFile(), help="Find the rule's weights on these questions, JSON lines; needs --model."
)
@click.option(
    "--rank", type=Rank(), help="Rank to keep [all of factors, the adapters' largest of a dense result]."
)
@click.option("--loss", type=float, help="Keep the least rank with this relative loss, such as 0.01.")
@click.option("--dtype", type=click.Choice(PRECISIONS), default=PRECISIONS[0], show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="For rules that draw at random.")
@click.option("--model", help="Their base, to hold names and shapes against; kohya's layout needs it.")
@click.option("--same-base", is_flag=True, help="Refuse adapters whose base has different names.")
@needs_extra("llm")
def merge(
    adapters: tuple[str, ...],
    out: Path,
    rule: str | None,
    weights: str | None,
    options: tuple[str, ...],
    recipe: Path | None,
    fit: Path | None,
    rank: int | str | None,
    loss: float | None,
    dtype: str,
    seed: int,
    model: str | None,
    same_base: bool,
) -> None:
    """Merge adapters into one that plain PEFT loads.

    What each of the ADAPTERS may be, `check --help` says. A rule that adds or joins factors is kept whole.
    One that works on single entries leaves a matrix of full rank, and is cut to the adapters' largest rank
    unless --rank or --loss asks for another. Rank, relative loss and size are said before anything is
    written. With --fit a rule such as lorahub finds its weights on half of the questions, through the model;
    the other half says what they are worth beside the plain mean. A rule that routes is written as a folder
    of its adapters, with code that loads them.
    """
    import sys

    from rich.console import Console

    from llm_experiments.adapters.compatible import compatibility
    from llm_experiments.adapters.of_base import opened_library, require_base
    from llm_experiments.merges.recipe import Recipe
    from llm_experiments.merges.saving import DTYPES, LARGEST, static_adapter
    from llm_experiments.models.files import printable
    from llm_experiments.models.shapes import base_shapes
    from toytransformer.compositions import Merge
    from toytransformer.merging import ALIASES, resolve
    from toytransformer.working import Bar

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise click.UsageError(f"--out '{out}' is there already: name a new folder")
    if fit:
        _require_fit(rule, model, weights, recipe)
    if recipe and (rule or weights or options):
        raise click.UsageError("--recipe says the rule, its weights and options: leave those out")
    if rank is not None and loss is not None:
        raise click.UsageError("--rank and --loss both say how much is kept: give one")
    base = None if model is None else base_shapes(model)
    library = opened_library(adapters, base)
    together = compatibility(library, same_base=same_base)
    together.require()
    require_base(library, base)
    plain = Merge(rule or "mean", merge_weights(weights), tuple(map(merge_option, options)))
    spec: Merge | FittedMerge = plain
    if recipe:
        spec = Recipe.read(recipe).merge(library)
    elif fit and model:
        spec = _fitted(plain, library, fit, model, seed)
    elif resolve(plain.rule).routed:
        if rank is not None or loss is not None:
            raise click.UsageError(f"--rule {rule} keeps every adapter as it is: leave out --rank and --loss")
        _write_routed(library, plain, base, out, seed, dtype)
        return
    elif resolve(plain.rule).needs_data:
        raise click.UsageError(f"--rule {rule} is fitted on examples: give --fit FILE, and --model")
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
    if rule in ALIASES:
        click.echo(f"{rule}: the rule {ALIASES[rule]}, {details['formula']}")
    for note in together.notes:
        click.echo(printable(note))
    click.echo(
        f"rank {details['rank']}, relative loss {details['relative_error']:.2g}, "
        f"{details['bytes'] / 1e6:,.1f} MB in {dtype}"
    )
    merged.write(out, out.name)
    click.echo(f"{out}")


def _write_routed(
    library: Sequence[AdapterWeights], spec: Merge, base: BaseShapes | None, out: Path, seed: int, dtype: str
) -> None:
    """Write adapters that are routed, and say what loads them."""
    from llm_experiments.adapters.of_base import base_here
    from llm_experiments.merges.routed_export import CODE, routed_adapters
    from llm_experiments.merges.saving import DTYPES
    from llm_experiments.models.files import printable
    from llm_experiments.models.shapes import base_shapes

    if base is None and (here := base_here(library[0])):
        base = base_shapes(here)
    routed = routed_adapters(library, spec, base=base, seed=seed, dtype=DTYPES[dtype])
    details = routed.details
    click.echo(
        f"{len(library)} adapters, {len(routed.layers)} layers, {details['bytes'] / 1e6:,.1f} MB in {dtype}; "
        f"smallest spectral gap {details['spectral_gap']['smallest']:.2g}"
    )
    if routed.unlike_peft is None:
        click.echo(f"PEFT's Arrow loads it; its prototypes are within {routed.angle:.1e} of the exact ones")
    else:
        click.echo(printable(f"PEFT's Arrow does not do the same: {routed.unlike_peft}"))
    routed.write(out, out.name)
    click.echo(f"{out}: see README.md, {CODE} loads it with torch and transformers alone")


def _require_fit(rule: str | None, model: str | None, weights: str | None, recipe: Path | None) -> None:
    """A usage error where --fit lacks what it needs, or something else says the weights."""
    from llm_experiments.merges.halves import fittable, require_fittable

    if recipe or weights:
        raise click.UsageError(f"--fit finds the weights: leave out --{'recipe' if recipe else 'weights'}")
    if rule is None:
        raise click.UsageError(f"--fit needs --rule: one of {', '.join(fittable())}")
    require_fittable(rule)
    if model is None:
        raise click.UsageError("--fit needs --model: the base through which the questions are answered")


def _fitted(
    spec: Merge, library: Sequence[AdapterWeights], questions: Path, model: str, seed: int
) -> FittedMerge:
    """The rule fitted on half of the questions; what came out is said."""
    from llm_experiments.domains.own.questions import read
    from llm_experiments.merges.halves import fit_half
    from llm_experiments.models.files import printable

    asked = read(questions, [adapter.name for adapter in library])
    loaded = options.chosen(model, None, "auto", "auto", False).load()
    found = fit_half(loaded, library, spec, asked, seed=seed)
    click.echo(
        f"fitted on {found.fitted} questions, {found.held_out} held out; "
        "mean -log p of an answer's token in nats:"
    )
    for name, (on, off) in found.losses.items():
        click.echo(f"  {name:<12} {on:8.4f} fitted on {off:8.4f} held out")
    for name, (least, mean, largest) in found.weights.items():
        over = (
            ""
            if least == largest
            else f" ({least:.3f} to {largest:.3f} over {len(found.merge.merges)} layers)"
        )
        click.echo(f"weight of {printable(name)}: {mean:.3f}{over}")
    if found.worse:
        click.echo(
            "the plain mean does as well or better on what was held out: use it, or give more questions"
        )
    return found.merge


@click.command()
@options.adapters_argument
@click.option(
    "--model", help="Their base, to hold names and shapes against: a hub id, a folder, a .gguf file."
)
@click.option("--same-base", is_flag=True, help="Refuse adapters whose base has different names.")
@needs_extra("llm")
def check(adapters: tuple[str, ...], model: str | None, same_base: bool) -> int:
    """Check whether adapters can be merged, and fit together.

    Each of the ADAPTERS is a PEFT folder, a folder that holds one, a .safetensors or .bin file (PEFT, mlx-lm,
    kohya), an expert of mttl, or a hub id as org/name, org/name@revision or org/name:folder; @FILE is a list
    of such, one a line. Without --model each is held against the base that it names, where that is on this
    machine. Exit status 1 if one is refused.
    """
    from functools import cache

    from llm_experiments.adapters.compatible import compatibility
    from llm_experiments.adapters.of_base import against, base_here, resolved
    from llm_experiments.adapters.peft_files import AdapterError, distinctly_named, opened
    from llm_experiments.models.files import printable
    from llm_experiments.models.shapes import base_shapes
    from llm_experiments.models.sources import ModelError

    def say(verdict: str, text: str) -> None:
        click.echo(f"{verdict:<8} {printable(text)}")

    @cache
    def named(name: str) -> BaseShapes | None:
        try:
            return base_shapes(name)
        except ModelError as error:
            say("note", f"the base {name!r} that adapters name is here and cannot be looked at: {error}")
            return None

    base = None if model is None else base_shapes(model)
    library: list[AdapterWeights] = []
    sources: list[str] = []
    refused = False
    for source in adapters:
        try:
            own = opened(source)
            its_name = None if base else base_here(own)
            its_base = named(its_name) if its_name else base
            if its_base:
                own = resolved(own, its_base)
            for _ in own.modules.values():  # reads each, one at a time: are its numbers finite?
                pass
            for tensor in own.whole.values():
                tensor.load()
        except AdapterError as error:
            say("refused", f"{source}: {' '.join(str(error).split())}")
            refused = True
            continue
        library.append(own)
        sources.append(source)
        layout = "" if own.layout == "PEFT" else f", {own.layout}"
        shape = f"rank {own.rank}, {len(own.modules)} modules, base {own.base}{layout}"
        problems = against(own, its_base) if its_base else []
        for problem in problems:
            say("refused", f"{source}: {problem}")
        if not problems:
            say("fine", f"{source}: {shape}")
        refused = refused or bool(problems)
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
