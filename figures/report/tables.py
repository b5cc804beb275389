"""Every measured cell as a line of a table, in groups that one opens one at a time."""

from __future__ import annotations

from collections.abc import Iterable

from figures.measured.cells import Cell, Place
from figures.notes import seeds
from figures.report.opening import merge, right
from results.forms import percent

HEADER = (
    *("adapters", "merged by", "asked", "questions", "right", "bridge", "old", "edited", "other"),
    "predicted",
)


def groups(cells: Iterable[Cell]) -> dict[str, list[tuple[str, ...]]]:
    """Lines in the order of HEADER, by what was varied."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for cell in cells:
        found.setdefault(_group(cell.place), []).append(_line(cell))
    return dict(sorted(found.items()))


def _group(place: Place) -> str:
    layers = f", {place.layers}" if place.layers not in (None, "mlp") else ""
    return f"{place.composition} on {place.dataset}{layers}: {_varied(place)}"


def _varied(place: Place) -> str:
    variant = dict(place.variant)
    if place.control == "random":
        return "random adapters"
    if len(place.library) < 2:
        return "the base and single adapters" if "relabelling" not in variant else "relabelled answers"
    for name, told in (
        ("gauge", "other factors of the same updates"),
        ("relabelling", "relabelled answers"),
        ("adapters", "sparse adapters"),
        ("initial_a", "other training"),
        ("steps", "other training"),
    ):
        if name in variant:
            return told
    if place.weights:
        return "weights"
    return "rules fitted to examples" if dict(place.setting).get("examples") else "merge rules"


def _line(cell: Cell) -> tuple[str, ...]:
    place = cell.place
    several = len(place.library) > 4
    library = f"{len(place.library)} adapters" if several else " + ".join(place.library) or "base alone"
    how = " in steps" if place.decode == "steps" else ""
    toy = cell.toy and f"{percent(cell.toy['shares'].get('correct', 0.0))}%"
    return (
        library if place.control != "random" else f"random for {library}",
        merge(place) if place.library else "",
        place.group + how,
        f"{cell.items}, {seeds([cell])}",
        right(cell),
        *(f"{percent(cell.shares[name])}%" for name in ("bridge", "old", "edited", "other")),
        toy or "",
    )
