"""A cell in words: how its library was merged, and how often it is right."""

from __future__ import annotations

from results.cells import Cell, percent


def right(cell: Cell) -> str:
    """Share of right answers with Wilson's interval, in percent; a dagger where adapters are undertrained."""
    low, high = cell.interval()
    return f"{percent(cell.share)}% [{percent(low)}, {percent(high)}]" + cell.dagger


def merge(cell: Cell) -> str:
    """How a library was merged, and what else was chosen."""
    chosen = [pair for mapping in (cell.info.options, cell.info.variant) for pair in sorted(mapping.items())]
    parts = [f"{name.replace('_', ' ')} {value}" for name, value in chosen]
    if examples := cell.info.setting.get("examples"):
        parts.append(f"{examples} examples")
    rule = "alone" if len(cell.info.library) == 1 and cell.info.rule == "sum" else cell.info.rule
    weights = f" {', '.join(f'{w:g}' for w in cell.info.weights)}" if cell.info.weights else ""
    return rule + weights + (f" ({', '.join(parts)})" if parts else "")
