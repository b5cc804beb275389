"""The answer: what composes, what does not, and why, each verdict and reason read off the cells.

A model composes what it answers rightly more often than not: Wilson's interval lies above one half under some
merge, at a confidence raised for the number of merges that it is the best of (Bonferroni). It does not where
the interval lies below one half under every merge; otherwise it is open. A reason is stated with the cells
that bear it out, and as contradicted where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from figures.drawings.weights import curves, swept
from figures.measured.cells import Cell, Place
from figures.notes import seeds
from figures.report import case_by_case
from results.forms import percent
from results.statistics import wilson

PAIR = ("hop1", "hop2")
#: Ways to train an adapter that leave a library what it is; other variants are experiments on it.
TRAINED = {"initial_a", "steps", "adapters", "form"}
#: The chance that an interval misses; all of them are of this level.
LEVEL = 0.05
#: The data set of the opening: real names, about which a base model may know something.
REAL = "R"


#: The two libraries that the reasons compare.
TWO, ONE = "two one-hop adapters, merged", "one adapter with both hops"


@dataclass(frozen=True)
class Held:
    """What one has: its name in a sentence, whether a cell is of it, and how it is asked."""

    name: str
    of: Callable[[Place], bool]
    asked: tuple[str, ...]


def _pair(place: Place) -> bool:
    both = place.weights is None or all(place.weights)
    return place.library == PAIR and place.control is None and both


def _fitted(place: Place) -> bool:
    return bool(dict(place.setting).get("examples"))


def _plain(place: Place) -> bool:
    return place.composition == "setup-0"


HELD = (
    Held(
        TWO,
        lambda place: _pair(place) and _plain(place) and not _fitted(place),
        ("direct", "steps"),
    ),
    Held(
        "two one-hop adapters, merged by a rule fitted to two-hop examples",
        lambda place: _pair(place) and _plain(place) and _fitted(place),
        ("direct", "steps"),
    ),
    Held(
        "two one-hop adapters trained with a bridge, merged",
        lambda place: _pair(place) and place.composition.startswith("setup-") and not _plain(place),
        ("direct", "steps"),
    ),
    Held(
        ONE,
        lambda place: place.library == ("mixed",) and _plain(place),
        ("direct", "steps"),
    ),
    Held(
        "one adapter trained on the two-hop questions",
        lambda place: place.library == ("oracle",) and _plain(place),
        ("direct",),
    ),
    Held(
        "the two-hop adapter and two one-hop adapters, merged",
        lambda place: place.library == (*PAIR, "oracle") and place.control is None and _plain(place),
        ("direct",),
    ),
)
ASKED = {"direct": "directly", "steps": "step by step"}
COMPOSES, FAILS, OPEN = "composes", "does not compose", "open"
DEPENDS = "depends on the model"


@dataclass(frozen=True)
class Line:
    """One thing held and one way of asking: the cells of each model."""

    held: Held
    decode: str
    cells: Mapping[str, Sequence[Cell]]

    @property
    def verdict(self) -> str:
        found = {verdict(cells) for cells in self.cells.values()}
        if len(found) == 1:
            return found.pop()
        return DEPENDS if {COMPOSES, FAILS} <= found else OPEN


def best(cells: Sequence[Cell]) -> Cell:
    """The merge that is right most often."""
    return max(cells, key=lambda cell: cell.shares["correct"])


def verdict(cells: Sequence[Cell]) -> str:
    """Of one model: whether any of these merges composes."""
    if above(best(cells), len(cells)):
        return COMPOSES
    return FAILS if all(map(below, cells)) else OPEN


def above(cell: Cell, among: int = 1) -> bool:
    """Whether more is right than not; among: of how many cells it is the best."""
    right = min(cell.shares["correct"], 1.0) * cell.items
    return wilson(right, cell.items, 1 - LEVEL / among)[0] > 1 / 2


def below(cell: Cell) -> bool:
    return cell.interval()[1] < 1 / 2


def right(cell: Cell) -> str:
    """Share of right answers with Wilson's interval, in percent."""
    low, high = cell.interval()
    return f"{percent(cell.shares['correct'])}% [{percent(low)}, {percent(high)}]"


def merge(place: Place) -> str:
    """How a library was merged, and what else was chosen."""
    told = [f"{key.replace('_', ' ')} {value}" for key, value in (*place.options, *place.variant)]
    if examples := dict(place.setting).get("examples"):
        told.append(f"{examples} examples")
    rule = "alone" if len(place.library) == 1 and place.rule == "sum" else place.rule
    weights = f" {', '.join(f'{w:g}' for w in place.weights)}" if place.weights else ""
    return rule + weights + (f" ({', '.join(told)})" if told else "")


def mostly(shares: Mapping[str, float]) -> str:
    """The most frequent outcome."""
    return max(shares, key=lambda outcome: shares[outcome])


def measured(cells: Sequence[Cell]) -> dict[str, str]:
    """What a cell of the table says of the best merge: its share right, over how much it is the best, and the
    most frequent answer beside the predicted one.
    """
    top, least = best(cells), min(cell.shares["correct"] for cell in cells)
    about = f"n = {top.items} questions on {top.chains} chains, {seeds([top])}"
    if len(cells) > 1:
        about = f"{merge(top.place)}, the best of {len(cells)} (least {percent(least)}%); {about}"
    answers = f"most often {_most(top.shares)}"
    if top.toy:
        answers += f"; predicted: {_most(top.toy['shares'])}"
    return {"right": right(top), "about": about, "answers": answers, "verdict": verdict(cells)}


def _most(shares: Mapping[str, float]) -> str:
    outcome = mostly(shares)
    return f"{case_by_case.SAYS[outcome]}, {percent(shares[outcome])}%"


def lines(cells: Iterable[Cell]) -> list[Line]:
    """Every line that some model has cells of."""
    asked = [cell for cell in cells if cell.place.group == "two-hop" and cell.place.dataset == REAL]
    asked = [cell for cell in asked if {key for key, _ in cell.place.variant} <= TRAINED]
    names = _names(asked)
    found = []
    for held in HELD:
        for decode in held.asked:
            models: dict[str, list[Cell]] = {}
            for cell in asked:
                if cell.place.decode == decode and held.of(cell.place):
                    models.setdefault(names[cell.place.model, cell.place.digest], []).append(cell)
            if models:
                found.append(Line(held, decode, models))
    return found


def _names(cells: Iterable[Cell]) -> dict[tuple[str, str | None], str]:
    """What each model is called: by its digest too where another one has its name."""
    models = dict.fromkeys((cell.place.model, cell.place.digest) for cell in cells)
    several = [name for name, _ in models]
    return {
        (name, digest): name if several.count(name) == 1 else f"{name} ({digest})" for name, digest in models
    }


def verdicts(found: Sequence[Line]) -> dict[str, dict[str, list[str]]]:
    """What composes, what does not, and what depends or is open: by way of asking, with the models that it is
    said of where these are not all.
    """
    models = {model for line in found for model in line.cells}
    told: dict[str, dict[str, list[str]]] = {name: {} for name in (COMPOSES, FAILS, DEPENDS, OPEN)}
    for line in found:
        by: dict[str, list[str]] = {}
        for model, cells in line.cells.items():
            by.setdefault(verdict(cells), []).append(model)
        about = "; ".join(f"{', '.join(own)}: {name}" for name, own in by.items())
        if len(by) == 1:
            about = f"{', '.join(line.cells)} only" if line.cells.keys() < models else ""
        told[line.verdict].setdefault(ASKED[line.decode], []).append(
            line.held.name + (f" ({about})" if about else "")
        )
    return {name: asked for name, asked in told.items() if asked}


def instead(found: Sequence[Line], cells: Sequence[Cell]) -> str:
    """How often the table's most frequent answer is the predicted one, and what the bases answer directly."""
    tops = [top for line in found for several in line.cells.values() if (top := best(several)).toy]
    wrong = [top for top in tops if not (mostly(top.shares) == mostly(top.toy["shares"]) == "correct")]
    agree = sum(mostly(top.shares) == mostly(top.toy["shares"]) for top in wrong)
    if not wrong:
        return ""
    told = (
        "Leaving out the cells where the right answer is predicted and most frequent, the most frequent "
        f"answer is the predicted one in {agree} of {len(wrong)} cells of this table."
    )
    bases = [cell for cell in cells if cell.place.control == "base" and cell.place.asked == "two-hop/direct"]
    bases = [cell for cell in bases if cell.place.dataset == REAL and cell.place.known and _plain(cell.place)]
    if bases:
        given = ", ".join(f"{cell.place.model} in {percent(cell.shares['old'])}%" for cell in bases)
        told += (
            " For known facts the theory takes for granted that the base answers two-hop questions; asked "
            f"directly, these bases give the old answer: {given}."
        )
    return told


# --- why --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reason:
    """Something that explains the table: what it says, the numbers it rests on, whether they bear it out."""

    says: str
    numbers: str
    holds: bool


def reasons(cells: Sequence[Cell], formed: Mapping[Place, float]) -> list[Reason]:
    """Every reason that the cells have something to say about."""
    table = {(line.held.name, line.decode): line.cells for line in lines(cells)}
    direct, steps, mixed = (table.get(key) for key in ((TWO, "direct"), (TWO, "steps"), (ONE, "direct")))
    found = [
        direct and _mixture([cell for several in direct.values() for cell in several]),
        direct and mixed and _not_merging(direct, mixed),
        _survival(curves(cell for cell in cells if swept(cell.place) and cell.place.known)),
        steps and _form(steps, cells, formed),
    ]
    return [reason for reason in found if reason]


def _mixture(direct: Sequence[Cell]) -> Reason | None:
    """What is predicted of every merge, and that no measured one composes either."""
    predicted = [cell for cell in direct if cell.toy]
    if not predicted:
        return None
    margins = [cell.toy["margin"] for cell in predicted]
    shares = [cell.toy["shares"].get("correct", 0.0) for cell in predicted]
    guesses = [1 / dict(cell.place.setting)["facts"] for cell in predicted]
    top = best(direct)
    return Reason(
        "In the theory, the output of a merged model mixes what its adapters and its base say; asked "
        "directly, another answer than the right one is the largest, and none of these merges is predicted "
        "right more often than a guess.",
        f"In {len(predicted)} predicted merges of {words_of(predicted)} the right answer's output lies "
        f"{-max(margins):.2g} to {-min(margins):.2g} below the largest, and {percent(max(shares))}% of the "
        f"questions get it at most; measured, {right(top)} at most ({top.place.model}).",
        max(margins) < 0
        and all(share <= guess for share, guess in zip(shares, guesses, strict=True))
        and all(map(below, direct)),
    )


def _not_merging(direct: Mapping[str, Sequence[Cell]], mixed: Mapping[str, Sequence[Cell]]) -> Reason | None:
    models = [model for model in mixed if model in direct]
    if not models:
        return None
    told = (f"{model} {right(best(mixed[model]))} against {right(best(direct[model]))}" for model in models)
    return Reason(
        f"It is not the merging ({', '.join(models)}): one adapter that holds both hops does not compose "
        "them directly either.",
        f"One adapter against the best merge of two: {'; '.join(told)}.",
        all(below(cell) for model in models for cell in (*mixed[model], *direct[model])),
    )


def _survival(sweep: Sequence[Cell]) -> Reason | None:
    """Single hops by the weight of their own adapter: one half, the weights next to it, where it turns."""
    by: dict[float, list[Cell]] = {}
    for cell in sweep:
        if cell.place.group in PAIR:
            by.setdefault(cell.place.weights[PAIR.index(cell.place.group)], []).append(cell)
    by = dict(sorted(by.items()))
    less, more = ([weight for weight in by if (weight > 1 / 2) == side] for side in (False, True))
    if 1 / 2 not in by or len(less) < 2 or not more:
        return None
    near = (less[-2], 1 / 2, more[0])
    told = (
        " and ".join(f"{percent(cell.shares['correct'])}%" for cell in by[weight]) + f" at {weight:g}"
        for weight in near
    )
    # A hop dies at the weights below `low` and lives at those above `high`.
    low = max((w for w in by if all(below(c) for v in by if v <= w for c in by[v])), default=0.0)
    high = min((w for w in by if all(above(c) for v in by if v >= w for c in by[v])), default=1.0)
    return Reason(
        "A hop over a known fact survives a merge if its own adapter has enough of the weight. The edge lies "
        "near one half, so a plain average of two puts both hops close to it.",
        f"Single hops are right in {', '.join(told)} of the weight; up to {low:g} less than one half of the "
        f"answers are right, from {high:g} on more ({words_of(sweep)}, {sum(map(len, by.values()))} cells).",
        1 / 4 <= low < high <= 3 / 4,
    )


def _form(
    steps: Mapping[str, Sequence[Cell]], cells: Sequence[Cell], formed: Mapping[Place, float]
) -> Reason | None:
    """Each model's best merge of the plain pair, whether its answers end as a chain does, its single hops."""
    chosen = {model: best(several) for model, several in steps.items()}
    hops = {
        model: [cell for cell in cells if cell.place.group in PAIR and _as(cell.place, top.place)]
        for model, top in chosen.items()
    }
    if len(chosen) < 2 or not all(hops.values()) or not all(top.place in formed for top in chosen.values()):
        return None
    told = (
        f"{model} writes it in {percent(formed[top.place])}%, {right(top)} right, hops alone "
        + " and ".join(f"{percent(cell.shares['correct'])}%" for cell in hops[model])
        for model, top in chosen.items()
    )
    formless = [model for model, top in chosen.items() if formed[top.place] < 1 / 2]
    return Reason(
        "Step by step, two merged adapters compose where the merged model writes “the answer is”, as a chain "
        "of thought ends. Where it does not, both hops are there one at a time and the chain still fails.",
        f"Under the best merge: {'; '.join(told)}.",
        0 < len(formless) < len(chosen)
        and all(
            below(top) if model in formless else above(top, len(steps[model]))
            for model, top in chosen.items()
        )
        and all(above(hop) for model in formless for hop in hops[model]),
    )


def _as(place: Place, other: Place) -> bool:
    """Whether two cells are of one merged model."""
    kept = ("model", "digest", "spec_hash", "dataset", "layers", "control", "variant")
    return all(getattr(place, name) == getattr(other, name) for name in kept)


def words_of(cells: Iterable[Cell]) -> str:
    """The models by name."""
    return ", ".join(dict.fromkeys(cell.place.model for cell in cells))
