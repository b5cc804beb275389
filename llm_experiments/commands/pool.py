"""`pool`: many adapters as a table, and some of them selected."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llm_experiments.commands import options
from llm_experiments.commands.options import FOLDER
from toytransformer.command_line import RegularFile, needs_extra

if TYPE_CHECKING:
    from llm_experiments.pools.members import Member
    from llm_experiments.pools.table import BaseGroup, Pool

#: How many rows are shown unless all are asked for.
SHOWN = 40


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--index", "index_file", type=FOLDER, help="Where rows are kept [the user's cache].")
@click.option(
    "--base",
    "bases",
    multiple=True,
    help="Select from adapters of this base, by any of its names; several count as one [that with most].",
)
@click.option("--select", "how", help="Select by this rule: random, all, loss, accuracy, cosine, ..")
@click.option("--count", type=click.IntRange(min=1), help="How many are selected [all].")
@click.option("--target", help="An adapter of the target task, for rules of likeness.")
@click.option("--ask", type=RegularFile(), help="Examples of the target task, JSON lines: question, answer.")
@click.option("--out", type=FOLDER, help="Write the selected ones to FILE, for merge @FILE.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the rule random.")
@click.option("--all", "everything", is_flag=True, help=f"Show all rows, not {SHOWN} at most.")
@click.option("--json", "as_json", is_flag=True, help="Print rows as JSON lines.")
@partial(options.model_options, model=None)
@needs_extra("llm")
def pool(
    sources: tuple[str, ...],
    index_file: Path | None,
    bases: tuple[str, ...],
    how: str | None,
    count: int | None,
    target: str | None,
    ask: Path | None,
    out: Path | None,
    seed: int,
    everything: bool,
    as_json: bool,
    **model: Any,
) -> None:
    """Show a pool of adapters as a table; select some of them.

    Each of the SOURCES is a folder, searched at any depth, a text file with one hub id or path a line, or a
    hub id. Of an adapter its settings, headers and model card are read and none of its numbers, of one on
    the hub neither the file. Rows are kept, so that only what has changed is looked at again; what cannot be
    merged is a row that says why. With --select the adapters of one base are ranked and the first --count
    of them written to --out; `merge @FILE` and `diagnose @FILE` take such a list.
    """
    import sys

    from rich.console import Console

    from llm_experiments.pools.index import index
    from llm_experiments.pools.table import Pool
    from toytransformer.working import Bar

    if (count or out or target or ask) and how is None:
        raise click.UsageError("--count, --out, --target and --ask belong to --select: give a rule")
    if out and out.exists():
        raise click.UsageError(f"--out '{out}' is there already: name a new file")
    console = Console(highlight=False)
    with Bar(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
        task = bar.add_task("adapters", total=None)
        rows = index(
            sources, index_file, tick=lambda done, every: bar.update(task, completed=done, total=every)
        )
        table = Pool(tuple(rows))
        chosen: list[tuple[Member, float]] = []
        if how is not None:
            group = table.of_base(bases)
            task = bar.add_task(how, total=None)
            tick = lambda done, every: bar.update(task, completed=done, total=every)  # noqa: E731
            chosen = _chosen(how, group, count, target, ask, seed, model, tick)
    if out:
        _write(out, how or "", table.of_base(bases), chosen)
    if as_json:
        scored: list[tuple[Member, float | None]] = [*chosen] or [(row, None) for row in rows]
        for row, score in scored:
            click.echo(json.dumps(asdict(row) | ({} if score is None else {"score": score})))
        return
    if how is None:
        _show(console, table, everything)
    for row, score in chosen:
        click.echo(_line(f"{score:10.4g}  {row.id}"))


def _chosen(
    how: str,
    group: BaseGroup,
    count: int | None,
    target: str | None,
    ask: Path | None,
    seed: int,
    model: dict[str, Any],
    tick: Any,
) -> list[tuple[Member, float]]:
    """The selected members with their scores."""
    from llm_experiments.adapters.reader import opened
    from llm_experiments.domains.own.questions import read
    from llm_experiments.pools.selectors import Selection, select

    loaded = options.chosen(**model).load() if model["model"] is not None else None
    job = Selection(
        group.members,
        seed,
        None if target is None else opened(target),
        read(ask, [member.id for member in group.members]) if ask else (),
        loaded,
        tick=tick,
    )
    return select(how, job, count)


def _write(file: Path, how: str, group: BaseGroup, chosen: list[tuple[Member, float]]) -> None:
    """The list that `merge @FILE` takes. Errors: AdapterError for a path that no list can hold."""
    from llm_experiments.adapters.lists import list_line
    from toytransformer.compositions import replace_file

    lines = [_line(f"# {len(chosen)} of {len(group.members)} adapters of {group.name} by {how}")]
    for row, _ in chosen:
        here = Path(row.source).expanduser()
        lines.append(list_line(str(here.resolve()) if here.exists() else row.source))
    replace_file(file, [f"{line}\n" for line in lines])


def _show(console: Any, pool: Pool, everything: bool) -> None:
    """The rows, then the bases, what is there twice, and why adapters are refused."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("adapter", "rank", "modules", "MB", "base", "licence"):
        table.add_column(name, justify="right" if name in ("rank", "modules", "MB") else "left")
    fine = [row for row in pool.rows if row.refused is None]
    shown = fine if everything else fine[:SHOWN]
    for row in shown:
        table.add_row(
            Text(_line(row.id)),
            str(row.rank),
            str(row.count),
            f"{row.bytes / 1e6:,.1f}",
            Text(_line(row.base or "")),
            Text(_line(row.licence or "")),
        )
    if shown:
        console.print(table)
    if len(shown) < len(fine):
        console.print(f"and {len(fine) - len(shown)} more: --all shows them")
    total = sum(row.bytes for row in fine)
    console.print(f"{len(fine)} adapters, {total / 1e9:,.2f} GB of factors; {len(pool.refused)} refused")
    for group in pool.bases:
        names = ", ".join(group.aliases) or "no name"
        console.print(
            _line(f"base {group.name}: {len(group.members)} can be merged with one another ({names})"),
            markup=False,
        )
        for id, reason in group.apart.items():
            console.print(_line(f"  apart {id}: {reason}"), markup=False)
    for ids in pool.duplicates:
        console.print(_line(f"the same files: {', '.join(ids)}"), markup=False)
    refused = pool.refused if everything else pool.refused[:SHOWN]
    for row in refused:
        console.print(_line(f"refused {row.id}: {row.refused}"), markup=False, soft_wrap=True)
    if len(refused) < len(pool.refused):
        console.print(f"and {len(pool.refused) - len(refused)} more refused: --all shows them")


def _line(text: str) -> str:
    from llm_experiments.models.files import printable

    return printable(text)
