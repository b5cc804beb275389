"""Command line of the theory: `python -m toytransformer list | predict NAME | verify`."""

from __future__ import annotations

from toytransformer import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from toytransformer.command_line import merge_option, merge_weights, run, stack_layers
from toytransformer.compositions import (
    Composition,
    Merge,
    Record,
    SpecError,
    catalogue,
    provenance,
    replace_file,
    write_jsonl,
)
from toytransformer.compositions.io import require_writable
from toytransformer.compositions.knowledge import DEGREES
from toytransformer.printing import print_prediction
from toytransformer.working import working

if TYPE_CHECKING:
    from toytransformer.cost import Cost
    from toytransformer.layers import StackPrediction
    from toytransformer.ledger import Row
    from toytransformer.prediction import Prediction
    from toytransformer.printing import Predicted
    from toytransformer.regimes import Regime
    from toytransformer.symmetry import SymmetricPrediction
    from toytransformer.toy import Toy

#: Facts per adapter up to which the dense solve is used even where the symmetric one applies.
DENSE = 2000
#: Facts and examples beyond which float64 no longer counts one by one.
MOST = 2**53


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Predict what a model answers after its LoRA adapters are merged, and check the theory behind it."""


@cli.command("list")
def list_names() -> None:
    """Show the compositions, the merge rules and their options."""
    from toytransformer import merging

    console = Console(highlight=False)
    console.print("[bold]Compositions[/bold]: predict NAME")
    table = Table(box=box.SIMPLE, show_header=False)
    for name in catalogue.names():
        table.add_row(name, escape(catalogue.describe(name)))
    console.print(table)
    console.print("[bold]Merge rules[/bold]: --merge NAME, options as --option KEY=VALUE")
    table = Table(box=box.SIMPLE, show_header=False)
    for rule in merging.RULES.values():
        options = ", ".join(f"{name}={option.default}" for name, option in rule.options.items())
        remarks = [f"options {options}"] if options else []
        remarks += [] if rule.gauge_invariant else ["depends on the gauge of the factors"]
        remarks += ["needs --examples"] if rule.needs_data else []
        text = Text(rule.formula)
        if remarks:
            text.append(f"\n({'; '.join(remarks)})", style="dim")
        table.add_row(rule.name, text)
    console.print(table)


@cli.command()
@click.argument("name")
@click.option(
    "--facts", type=click.IntRange(1, MOST), default=1, show_default=True, help="Facts per adapter."
)
@click.option("--known/--fresh", default=True, show_default=True, help="Whether the base has old answers.")
@click.option("--library", help="Adapters, by comma: hop1,hop2,oracle,mixed,joint.")
@click.option("--merge", "rule", default="sum", show_default=True, help="Merge rule (see `list`).")
@click.option("--weights", help="Merge weights, by comma, one per adapter.")
@click.option(
    "--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the merge rule; repeatable."
)
@click.option("--rank", type=click.IntRange(1, MOST), help="Rank of every adapter [what its facts need].")
@click.option(
    "--gauge",
    default="svd",
    show_default=True,
    help="Which factors of an update: svd, facts, flipped or random:<seed>.",
)
@click.option(
    "--examples",
    type=click.IntRange(0, MOST),
    default=0,
    show_default=True,
    help="Two-hop examples for rules that need data.",
)
@click.option("--regime", type=click.Choice(["limit", "width", "finite"]), default="limit", show_default=True)
@click.option("-d", "dimension", type=int, help="Embedding dimension (width and finite regimes) [1024].")
@click.option("-m", "width", type=int, help="Number of neurons (finite regime) [65536].")
@click.option(
    "--mask", default="strict", show_default=True, help="strict, causal or causal-printed (eq. 21)."
)
@click.option("--attention", default="uniform", show_default=True, help="uniform or softmax.")
@click.option(
    "--base",
    type=click.Choice(["exact", "trained"]),
    default="exact",
    show_default=True,
    help="What the base says to prompts it was not trained on: nothing, or a mixture of what it knows.",
)
@click.option(
    "--typed",
    "kinship",
    type=float,
    default=0.0,
    show_default=True,
    help="Cosine of the output vectors of two answers of one kind, from 0 to below 1.",
)
@click.option(
    "--relation-length",
    type=float,
    default=1.0,
    show_default=True,
    help="Length of the embeddings of relations, relative to those of entities.",
)
@click.option(
    "--degree",
    type=click.Choice(DEGREES),
    help="What the base knows of the edited chains; nothing is --fresh, one-hop a trained base's default.",
)
@click.option(
    "--bystanders",
    type=click.IntRange(0, MOST),
    default=0,
    show_default=True,
    help="People with answers of their own whom no adapter touches.",
)
@click.option(
    "--layers",
    help="In which layers of a stack each adapter lies, by comma: 1,2; several layers of one by +: 1+2,2.",
)
@click.option("--depth", type=click.IntRange(1, 8), help="Layers of the stack [the highest of --layers].")
@click.option("--untied", is_flag=True, help="Labels of answers are not the embeddings of their tokens.")
@click.option("--own-second", is_flag=True, help="The base knows the last relation of those asked, x R2.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the records to FILE, one JSON object a line.",
)
def predict(
    name: str,
    facts: int,
    known: bool,
    library: str | None,
    rule: str,
    weights: str | None,
    options: tuple[str, ...],
    gauge: str,
    rank: int | None,
    examples: int,
    regime: str,
    dimension: int | None,
    width: int | None,
    mask: str,
    attention: str,
    base: str,
    kinship: float,
    relation_length: float,
    degree: str | None,
    bystanders: int,
    layers: str | None,
    depth: int | None,
    untied: bool,
    own_second: bool,
    seed: int,
    json_file: Path | None,
) -> None:
    """Predict the answers of the composition NAME.

    `two-hop` is the plain pair, one adapter for each hop; `list` shows the others. --base, --typed and
    --relation-length go beyond the paper's model, one idealisation at a time (theory.md, section 8). --layers
    puts each adapter into layers of its own (section 11); a trained base then lies in all of them.
    """
    import jax

    from toytransformer import merging
    from toytransformer.bases import ExactBase, TrainedBase
    from toytransformer.readout import OneHot, Typed
    from toytransformer.toy import Toy

    jax.config.update("jax_enable_x64", True)
    merge = Merge(rule, merge_weights(weights), tuple(map(merge_option, options)))
    merging.check(merge)
    if json_file:
        require_writable(json_file)
    common = {"mask": mask, "attention": attention, "seed": seed, "relation_length": relation_length}
    toy = Toy(
        _regime(regime, dimension, width, **common),
        TrainedBase() if base == "trained" else ExactBase(),
        Typed(kinship) if kinship else OneHot(),
    )

    def build(count: int, shown: int = examples) -> Composition:
        return catalogue.build(
            name,
            facts=count,
            known=known,
            library=None if library is None else tuple(library.split(",")),
            merge=merge,
            seed=seed,
            gauge=gauge,
            rank=rank,
            examples=shown,
            degree=degree,
            bystanders=bystanders,
            own_second=own_second,
        )

    predicted: Predicted
    if layers is None:
        if depth is not None or untied:
            raise click.UsageError("--depth and --untied are about a stack of layers: give --layers too")
        predicted, records = _predict(build, facts, examples, toy)
    else:
        if kinship:
            raise click.UsageError("a stack of layers has one-hot answers: leave out --typed or --layers")
        predicted, records = _stacked(build, facts, examples, toy, layers, depth, untied)
    if json_file:
        write_jsonl(json_file, records)
    print_prediction(predicted, records)


@cli.command()
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the rows to FILE."
)
@click.option("--thorough", is_flag=True, help="Larger sizes and more repeats; takes longer.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--jobs", type=click.IntRange(1, 64), help="Processes that check claims [one a core, 4 at most]."
)
def verify(json_file: Path | None, thorough: bool, seed: int, jobs: int | None) -> None:
    """Check every claim of the theory; exit status 1 if one fails."""
    if json_file:
        require_writable(json_file)
    # The matrices are small: BLAS threads that wait for each other cost more than they save.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import jax

    jax.config.update("jax_enable_x64", True)
    from toytransformer import ledger

    origin = {**provenance(), "seed": seed, "thorough": thorough}  # of the code that runs, not of later edits
    console, rows, title = Console(soft_wrap=True, highlight=False), [], None
    jobs = jobs or min(4, os.cpu_count() or 1)
    for row in ledger.verify(ledger.Run(seed=seed, thorough=thorough), jobs):  # printed as they come
        heading, _, statement = row.claim.partition(": ")
        if heading != title:
            console.print(f"\n[bold]{escape(heading)}[/bold]  ({escape(row.source)})")
            title = heading
        console.print(_ledger_line(row, statement or heading))
        rows.append(row)
    console.print()
    failed = [row for row in rows if row.verdict != "holds"]
    console.print(f"{len(rows) - len(failed)} of {len(rows)} checks hold")
    if json_file:
        plain = [_finite(row.to_dict() | {"provenance": origin}) for row in rows]
        replace_file(json_file, [json.dumps(plain, indent=1, allow_nan=False) + "\n"])
    if failed:
        sys.exit(1)


def _ledger_line(row: Row, statement: str) -> str:
    """One row in one line: verdict, statement, both sides, tolerance and its kind, regime, remark."""
    expected, measured = (escape(_number(side, row)) for side in (row.expected, row.measured))
    verdict = "[green]holds[/green]" if row.verdict == "holds" else "[bold red]FAILS[/bold red]"
    within = "" if row.tolerance_kind == "exact" else f" ± {row.tolerance:.2g}"
    note = f"  [dim]{escape(row.note)}[/dim]" if row.note else ""
    regime = f"; {row.regime}" if row.regime else ""
    return (
        f"  {verdict}  {escape(statement)}: expected {expected}{within}, measured {measured}  "
        f"[dim]({row.tolerance_kind}{escape(regime)})[/dim]{note}"
    )


def _predict(
    build: Callable[..., Composition], facts: int, examples: int, toy: Toy
) -> tuple[Prediction | SymmetricPrediction, tuple[Record, ...]]:
    """The dense prediction; beyond DENSE facts in the limit the symmetric one, where the rule has it."""
    from toytransformer import cost, prediction, symmetry
    from toytransformer.merging import RuleError
    from toytransformer.regimes import FullLimit

    if facts > DENSE and not examples and isinstance(toy.regime, FullLimit):
        with contextlib.suppress(SpecError, RuleError):  # not symmetric: the dense prediction has to do it
            symmetric = symmetry.predict(build, facts, toy)
            return symmetric, symmetric.records()
    small = _small(build, examples)
    needed = _needed(small, facts, examples, toy)

    def work() -> tuple[Prediction, tuple[Record, ...]]:
        predicted = prediction.predict(build(facts), toy)
        return predicted, predicted.records()

    seconds = needed.seconds()
    title = f"{small.name}, {facts} fact{'s' * (facts != 1)} in each adapter"
    return working(work, title, seconds, cost.in_words(seconds))


def _small(build: Callable[..., Composition], examples: int) -> Composition:
    """Two chains of a composition, which tell the size of all before that itself is built."""
    return build(2, min(examples, 2))


def _needed(small: Composition, facts: int, examples: int, toy: Toy) -> Cost:
    """What the whole composition asks for. Errors: MemoryError where that is not there."""
    from toytransformer import cost, prediction

    copies = (facts + examples) / (2 + min(examples, 2))
    prompts = (*prediction.asked_prompts(small, toy.base), *toy.base.prompts(small.world))
    needed = cost.of_prediction(small, prompts, toy.regime, copies)
    needed.require()
    return needed


def _stacked(
    build: Callable[..., Composition],
    facts: int,
    examples: int,
    toy: Toy,
    layers: str,
    depth: int | None,
    untied: bool,
) -> tuple[StackPrediction, tuple[Record, ...]]:
    from toytransformer import cost
    from toytransformer.layers import Stack, predict
    from toytransformer.regimes import Measured

    small = _small(build, examples)
    placement = stack_layers(layers, [adapter.name for adapter in small.adapters])
    highest = max(layer for places in placement.values() for layer in places)
    count = depth or min(highest, 8)
    assert not isinstance(toy.regime, Measured)
    base = () if toy.base.exact else tuple(range(1, count + 1))
    stack = Stack(toy.regime, count, tied=not untied, base_layers=base)
    seconds = count * _needed(small, facts, examples, toy).seconds()

    def work() -> tuple[StackPrediction, tuple[Record, ...]]:
        stacked = predict(build(facts), stack, placement)
        return stacked, stacked.records()

    return working(work, f"{small.name} in {count} layers", seconds, cost.in_words(seconds))


def _regime(name: str, dimension: int | None, width: int | None, **common: Any) -> Regime:
    from toytransformer import regimes

    if name == "limit" and (dimension is not None or width is not None):
        raise click.UsageError(
            "the limit has no -d or -m; use --regime width (with -d) or --regime finite (with -d and -m)"
        )
    if name == "width" and width is not None:
        raise click.UsageError("the width limit has no -m; use --regime finite")
    if name == "limit":
        return regimes.FullLimit(**common)
    dimension = 1024 if dimension is None else dimension
    if name == "width":
        return regimes.WidthLimit(dimension=dimension, **common)
    return regimes.Finite(dimension=dimension, width=65536 if width is None else width, **common)


def _number(value: float | str, row: Row) -> str:
    """Six digits; 0 for what is below rounding, where the number of threads decides."""
    if isinstance(value, str):
        return value
    return "0" if row.tolerance_kind == "algebraic" and abs(value) < row.tolerance else f"{value:.6g}"


def _finite(value: object) -> object:
    """JSON has no infinity or NaN: they become their names."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def main() -> None:
    """Run the command line; a bad argument is one line on stderr and status 2."""
    run(cli, "python -m toytransformer")


if __name__ == "__main__":
    main()
