"""A library's geometry and what stands out in it, for a terminal and as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm_experiments.diagnose.findings import SMALL, Finding
from llm_experiments.diagnose.library import LibraryGeometry
from llm_experiments.models.files import printable

#: What a terminal shows: lines of pairs, adapters with a column of their own, parts of a model's blocks.
PAIRS, COLUMNS, PARTS = 12, 4, 9
#: A share of an adapter's energy by block, relative to its largest.
BARS = " ▁▂▃▄▅▆▇█"


def plain(text: str) -> str:
    """Text of unknown origin for a terminal: no markup, nothing that a terminal obeys."""
    return escape(printable(text))


def show(console: Console, library: LibraryGeometry, found: Sequence[Finding]) -> None:
    """The tables, and below them what stands out."""
    for title, table in (_adapters(library), _pairs(library), _rules(library)):
        console.print(f"[bold]{title}[/bold]")
        console.print(table)
    energy = "" if math.isnan(library.energy) else f"{library.energy:.3f}"
    console.print(f"Energy of the sum / sum of energies: {energy} (1 where updates are orthogonal)")
    if not found:
        console.print("Nothing stands out.")
    for finding in found:
        mark = "[bold]![/bold]" if finding.against else "-"
        console.print(f"{mark} {plain(finding.text)}")


def _adapters(library: LibraryGeometry) -> tuple[str, Table]:
    blocks = {block: shares for block, shares in library.blocks.items() if block is not None}
    numbers = f"blocks {min(blocks)}-{max(blocks)}" if blocks else "blocks"
    table = plain_table(("adapter", "rank", "modules", "norm", numbers, "most in", "gaps"))
    parts = np.array_split(np.array(list(blocks.values())), min(PARTS, len(blocks))) if blocks else []
    gaps = library.gaps
    for index, name in enumerate(library.names):
        kind, share = max(((k, float(s[index])) for k, s in library.kinds.items()), key=lambda pair: pair[1])
        own = gaps[:, index][~np.isnan(gaps[:, index])]
        table.add_row(
            plain(name),
            str(library.ranks[index]),
            str(library.present[index]),
            f"{library.norms[index]:.3g}",
            _bars([float(part[:, index].mean()) for part in parts]),
            "" if math.isnan(share) else f"{plain(kind)} {share:.0%}",
            f"{own.min():.2g}, {np.median(own):.2g}" if len(own) else "",
        )
    title = (
        "Adapters: where the energy |D|^2 lies, and the gap (s1 - s2) / s1 of singular values, smallest and "
        "median over modules"
    )
    return title, table


def _pairs(library: LibraryGeometry) -> tuple[str, Table]:
    cosines, errors = library.cosines, library.cosine_errors
    sides = {side: (library.overlap(side), library.chance(side)) for side in ("read", "write")}
    order = sorted(
        combinations(range(len(library.names)), 2),
        key=lambda pair: (math.isnan(cosines[pair]), -abs(np.nan_to_num(cosines[pair]))),
    )
    title = "Pairs: ± is a standard deviation of chance, in brackets is what random spaces have"
    if len(order) > PAIRS:
        title += f"; the {PAIRS} of {len(order)} with the largest cosines"
    table = plain_table(("adapters", "", "cosine", "read overlap", "write overlap"))
    for pair in order[:PAIRS]:
        table.add_row(
            *(plain(library.names[index]) for index in pair),
            _number(cosines[pair], f"{cosines[pair]:+.4f} ± {errors[pair]:.1g}"),
            *(_number(of[pair], f"{of[pair]:.3f} ({by[pair]:.1g})") for of, by in sides.values()),
        )
    return title, table


def _rules(library: LibraryGeometry) -> tuple[str, Table]:
    named = len(library.names) <= COLUMNS
    columns = [plain(name) for name in library.names] if named else ["least", "most"]
    title = (
        "What static rules keep of each adapter, <M, D> / |D|^2; own: share of |M|^2 that is a mixture of "
        "the adapters; moves: |M' - M| / |M| in other factors of the same updates"
    )
    table = plain_table(("rule", *columns, "own", "moves"))
    seen = library.norms >= SMALL * library.norms.max()  # of next to nothing the share means nothing
    for name, figures in library.rules.items():
        kept = figures.keeps[seen & ~np.isnan(figures.keeps)]
        shown = list(figures.keeps) if named else ([kept.min(), kept.max()] if len(kept) else [np.nan] * 2)
        moves = f"{max(figures.moves.values()):.0%}" if figures.moves else ""
        table.add_row(
            name,
            *(_number(value, f"{value:.3g}") for value in shown),
            _number(figures.own, f"{figures.own:.0%}"),
            moves,
        )
    return title, table


def plain_table(headings: Sequence[str]) -> Table:
    """A table without rows; long names are folded."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _number(value: float, text: str) -> str:
    return "" if math.isnan(value) else text


def _bars(shares: Sequence[float]) -> str:
    top = max((share for share in shares if not math.isnan(share)), default=0.0)
    if not top:
        return ""
    return "".join(BARS[math.ceil(share / top * (len(BARS) - 1) - 1e-9)] for share in shares)


def to_dict(library: LibraryGeometry, found: Sequence[Finding]) -> dict[str, object]:
    """Everything as JSON has it, None where a number is not defined."""
    modules = {
        name: {
            "shape": list(module.shape),
            "gram": numbers(module.gram),
            "singular_values": [numbers(values) for values in module.values],
            "read_overlap": numbers(module.read),
            "write_overlap": numbers(module.write),
        }
        for name, module in library.modules.items()
    }
    return {
        "adapters": [
            {"name": name, "rank": rank, "modules": int(count), "norm": float(norm)}
            for name, rank, count, norm in zip(
                library.names, library.ranks, library.present, library.norms, strict=True
            )
        ],
        "energy_of_sum": numbers(library.energy),
        "cosine": numbers(library.cosines),
        "cosine_by_chance": numbers(library.cosine_errors),
        **{f"{side}_overlap": numbers(library.overlap(side)) for side in ("read", "write")},
        **{f"{side}_overlap_by_chance": numbers(library.chance(side)) for side in ("read", "write")},
        "blocks": {
            "outside" if block is None else str(block): numbers(share)
            for block, share in library.blocks.items()
        },
        "kinds": {kind: numbers(share) for kind, share in library.kinds.items()},
        "rules": {
            name: {
                "keeps": numbers(rule.keeps),
                "standard_errors": numbers(rule.errors),
                "nearest_mixture": numbers(rule.weights),
                "own": numbers(rule.own),
                "moves_with_gauge": dict(rule.moves),
            }
            for name, rule in library.rules.items()
        },
        "findings": [finding.to_dict() for finding in found],
        "modules": modules,
    }


def numbers(values: object) -> object:
    """An array, list or number as JSON has it: NaN is None."""
    if isinstance(values, np.ndarray | list | tuple):
        return [numbers(value) for value in values]
    number = float(values)  # type: ignore[arg-type]
    return number if math.isfinite(number) else None
