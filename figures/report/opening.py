"""The answer: what composes, what does not, and why, each verdict and reason read off the cells.

A model composes what it answers rightly more often than not: Wilson's interval lies above one half under some
merge. It does not where the interval lies below one half under every merge; otherwise it is open. A reason is
stated with the cells that bear it out, and as contradicted where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from figures import words
from figures.measured.cells import Cell, Place
from figures.measured.weights import swept
from figures.measured.words import seeds
from llm_experiments.running.layout import percent

PAIR = ("hop1", "hop2")
#: Ways to train an adapter that leave a library what it is; other variants are experiments on it.
TRAINED = {"initial_a", "steps", "adapters", "form"}
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
    """One thing held and one way of asking: the cells of each model, and what is predicted of them."""

    held: Held
    decode: str
    cells: Mapping[str, Sequence[Cell]]
    predicted: Mapping[str, str]

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
    if above(best(cells)):
        return COMPOSES
    return FAILS if all(map(below, cells)) else OPEN


def above(cell: Cell) -> bool:
    return cell.interval()[0] > 1 / 2


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


def measured(cells: Sequence[Cell]) -> dict[str, str]:
    """What a cell of the table says: the best merge's share, and over how much it is the best."""
    top, least = best(cells), min(cell.shares["correct"] for cell in cells)
    about = f"n = {top.items}, {seeds([top])}"
    if len(cells) > 1:
        about = f"{merge(top.place)}, the best of {len(cells)} (least {percent(least)}%); {about}"
    return {"right": right(top), "about": about, "verdict": verdict(cells)}


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
                toys = [cell.toy for several in models.values() for cell in several if cell.toy]
                found.append(Line(held, decode, models, _predicted(toys)))
    return found


def _names(cells: Iterable[Cell]) -> dict[tuple[str, str | None], str]:
    """What each model is called: by its digest too where another one has its name."""
    models = dict.fromkeys((cell.place.model, cell.place.digest) for cell in cells)
    several = [name for name, _ in models]
    return {
        (name, digest): name if several.count(name) == 1 else f"{name} ({digest})" for name, digest in models
    }


def _predicted(toys: Sequence[Mapping]) -> dict[str, str]:
    """The right answer's share, over all merges, and what is answered instead."""
    if not toys:
        return {}
    shares = [toy["shares"].get("correct", 0.0) for toy in toys]
    least, most = percent(min(shares)), percent(max(shares))
    return {
        "right": f"{least}%" if least == most else f"{least} to {most}%",
        "about": words.answers(toys).partition(",")[0],
    }


def verdicts(found: Sequence[Line]) -> dict[str, dict[str, list[str]]]:
    """What composes, what does not, and what depends or is open: by way of asking."""
    told: dict[str, dict[str, list[str]]] = {name: {} for name in (COMPOSES, FAILS, DEPENDS, OPEN)}
    for line in found:
        told[line.verdict].setdefault(ASKED[line.decode], []).append(line.held.name)
    return {name: asked for name, asked in told.items() if asked}


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
        direct and _mixture([cell for several in direct.values() for cell in several if cell.toy]),
        direct and mixed and _not_merging(direct, mixed),
        _survival([cell for cell in cells if swept(cell.place) and cell.place.known]),
        steps and _form(steps, cells, formed),
    ]
    return [reason for reason in found if reason]


def _mixture(predicted: Sequence[Cell]) -> Reason | None:
    if not predicted:
        return None
    margins = [cell.toy["margin"] for cell in predicted]
    shares = [cell.toy["shares"].get("correct", 0.0) for cell in predicted]
    guesses = [1 / dict(cell.place.setting)["facts"] for cell in predicted]
    return Reason(
        "The output of a merged model mixes what its adapters and its base say. Asked directly, none of them "
        "says the right answer: another one is larger, and no merge is right more often than a guess.",
        f"In {len(predicted)} predicted merges of {words_of(predicted)} the right answer's output lies "
        f"{-max(margins):.2g} to {-min(margins):.2g} below the largest, and {percent(max(shares))}% of the "
        "questions get it at most.",
        max(margins) < 0 and all(share <= guess for share, guess in zip(shares, guesses, strict=True)),
    )


def _not_merging(direct: Mapping[str, Sequence[Cell]], mixed: Mapping[str, Sequence[Cell]]) -> Reason | None:
    models = [model for model in mixed if model in direct]
    if not models:
        return None
    told = (f"{model} {right(best(mixed[model]))} against {right(best(direct[model]))}" for model in models)
    return Reason(
        "It is not the merging. One adapter that holds both hops does not compose them directly either.",
        f"One adapter against the best merge of two: {'; '.join(told)}.",
        all(below(cell) for model in models for cell in mixed[model]),
    )


def _survival(sweep: Sequence[Cell]) -> Reason | None:
    """Single hops by the weight of their own adapter: below one half, at it, above it."""
    sides: dict[int, list[Cell]] = {-1: [], 0: [], 1: []}
    for cell in sweep:
        if cell.place.group in PAIR:
            weight = cell.place.weights[PAIR.index(cell.place.group)]
            sides[(weight > 1 / 2) - (weight < 1 / 2)].append(cell)
    if not all(sides.values()):
        return None
    less, edge, more = (fmean(cell.shares["correct"] for cell in side) for side in sides.values())
    return Reason(
        "A hop over a known fact survives a merge only above half of the weight, and a plain average of two "
        "puts both hops on that edge.",
        f"Single hops are right in {percent(less)}% below one half, {percent(edge)}% at it, "
        f"{percent(more)}% above ({words_of(sweep)}, {sum(map(len, sides.values()))} cells).",
        less < edge < more and not any(map(above, sides[-1])) and not any(map(below, sides[1])),
    )


def _form(
    steps: Mapping[str, Sequence[Cell]], cells: Sequence[Cell], formed: Mapping[Place, float]
) -> Reason | None:
    """Each model's best merge of the plain pair, whether it has the form of a chain, and its single hops."""
    chosen = {model: best(several) for model, several in steps.items()}
    hops = {
        model: [cell for cell in cells if cell.place.group in PAIR and _as(cell.place, top.place)]
        for model, top in chosen.items()
    }
    if len(chosen) < 2 or not all(hops.values()) or not all(top.place in formed for top in chosen.values()):
        return None
    told = (
        f"{model} {percent(formed[top.place])}% in the form of a chain, {right(top)} right, hops alone "
        + " and ".join(f"{percent(cell.shares['correct'])}%" for cell in hops[model])
        for model, top in chosen.items()
    )
    formless = [model for model, top in chosen.items() if formed[top.place] < 1 / 2]
    return Reason(
        "Step by step, two adapters compose where the base knows the form of a chain of thought. Where it "
        "does not, both hops are there one at a time and the chain still fails.",
        f"Under the best merge: {'; '.join(told)}.",
        bool(formless)
        and all(above(top) == (model not in formless) for model, top in chosen.items())
        and all(above(hop) for model in formless for hop in hops[model]),
    )


def _as(place: Place, other: Place) -> bool:
    """Whether two cells are of one merged model."""
    kept = ("model", "digest", "spec_hash", "dataset", "layers", "control", "variant")
    return all(getattr(place, name) == getattr(other, name) for name in kept)


def words_of(cells: Iterable[Cell]) -> str:
    """The models by name."""
    return ", ".join(dict.fromkeys(cell.place.model for cell in cells))
