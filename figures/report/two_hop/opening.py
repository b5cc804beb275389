"""The answer: what composes, what does not, and why, each verdict and reason read off the cells.

A model composes what it answers rightly more often than not: Wilson's interval lies above one half under some
merge, at a confidence raised for the number of merges that it is the best of (Bonferroni). It does not where
the interval lies below one half under every merge; otherwise it is open. A reason is stated with the cells
that bear it out, and as contradicted where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from figures.drawings.two_hop.weights import curves, swept, weight
from figures.notes import known, seeds
from figures.report.cells import merge, right
from figures.report.two_hop import case_by_case
from results.cells import RIGHT, Cell, percent
from results.statistics import wilson

PAIR = ("hop1", "hop2")
#: Ways to train an adapter that leave a library what it is; other variants are experiments on it.
TRAINED = {"initial_a", "steps", "adapters", "form"}
#: The chance that an interval misses; all of them are of this level.
LEVEL = 0.05
#: The outcome that is what the base itself says.
OLD = "old"
#: The mark of an answer that ends as a chain of thought does.
FORM = "has_form"
#: The data set of the opening: real names, about which a base model may know something.
REAL = "R"


#: The two libraries that the reasons compare.
TWO, ONE = "two one-hop adapters, merged", "one adapter with both hops"


@dataclass(frozen=True)
class Held:
    """What one has: its name in a sentence, whether a cell is of it, and how it is asked."""

    name: str
    of: Callable[[Cell], bool]
    asks: tuple[str, ...]


def _pair(cell: Cell) -> bool:
    both = cell.info.weights is None or all(cell.info.weights)
    return cell.info.library == PAIR and cell.info.control is None and both


def _fitted(cell: Cell) -> bool:
    return bool(cell.info.setting.get("examples"))


def _plain(cell: Cell) -> bool:
    return cell.info.task == "setup-0"


HELD = (
    Held(
        TWO,
        lambda cell: _pair(cell) and _plain(cell) and not _fitted(cell),
        ("direct", "steps"),
    ),
    Held(
        "two one-hop adapters, merged by a rule fitted to two-hop examples",
        lambda cell: _pair(cell) and _plain(cell) and _fitted(cell),
        ("direct", "steps"),
    ),
    Held(
        "two one-hop adapters trained with a bridge, merged",
        lambda cell: _pair(cell) and cell.info.task.startswith("setup-") and not _plain(cell),
        ("direct", "steps"),
    ),
    Held(
        ONE,
        lambda cell: cell.info.library == ("mixed",) and _plain(cell),
        ("direct", "steps"),
    ),
    Held(
        "one adapter trained on the two-hop questions",
        lambda cell: cell.info.library == ("oracle",) and _plain(cell),
        ("direct",),
    ),
    Held(
        "the two-hop adapter and two one-hop adapters, merged",
        lambda cell: cell.info.library == (*PAIR, "oracle") and cell.info.control is None and _plain(cell),
        ("direct",),
    ),
)
WAYS = {"direct": "directly", "steps": "step by step"}
COMPOSES, FAILS, OPEN = "composes", "does not compose", "open"
DEPENDS = "depends on the model"


@dataclass(frozen=True)
class Line:
    """One thing held and one way of asking: the cells of each model."""

    held: Held
    ask: str
    cells: Mapping[str, Sequence[Cell]]

    @property
    def verdict(self) -> str:
        several = {verdict(cells) for cells in self.cells.values()}
        if len(several) == 1:
            return several.pop()
        return DEPENDS if {COMPOSES, FAILS} <= several else OPEN


def best(cells: Sequence[Cell]) -> Cell:
    """The merge that is right most often."""
    return max(cells, key=lambda cell: cell.share)


def verdict(cells: Sequence[Cell]) -> str:
    """Of one model: whether any of these merges composes."""
    if above(best(cells), len(cells)):
        return COMPOSES
    return FAILS if all(map(below, cells)) else OPEN


def above(cell: Cell, among: int = 1) -> bool:
    """Whether more is right than not; among: of how many cells it is the best."""
    right = min(cell.share, 1.0) * cell.items
    return wilson(right, cell.items, 1 - LEVEL / among)[0] > 1 / 2


def below(cell: Cell) -> bool:
    return cell.interval()[1] < 1 / 2


def mostly(shares: Mapping[str, float]) -> str:
    """The most frequent outcome."""
    return max(shares, key=lambda outcome: shares[outcome])


def measured(cells: Sequence[Cell]) -> dict[str, str]:
    """What a cell of the table says of the best merge: its share right, over how much it is the best, and the
    most frequent answer beside the predicted one.
    """
    top, least = best(cells), min(cell.share for cell in cells)
    about = f"n = {top.items} questions on {top.clusters} chains, {seeds([top])}"
    if len(cells) > 1:
        about = f"{merge(top)}, the best of {len(cells)} (least {percent(least)}%); {about}"
    answers = f"most often {_most(top.outcomes)}"
    if top.prediction:
        answers += f"; predicted: {_most(top.prediction['shares'])}"
    return {"right": right(top), "about": about, "answers": answers, "verdict": verdict(cells)}


def _most(shares: Mapping[str, float]) -> str:
    outcome = mostly(shares)
    return f"{case_by_case.SAYS[outcome]}, {percent(shares[outcome])}%"


def lines(cells: Iterable[Cell]) -> list[Line]:
    """Every line that some model has cells of."""
    chosen = [cell for cell in cells if cell.group == "two-hop" and cell.info.dataset == REAL]
    chosen = [cell for cell in chosen if cell.info.variant.keys() <= TRAINED]
    names = _names(chosen)
    listed = []
    for held in HELD:
        for ask in held.asks:
            models: dict[str, list[Cell]] = {}
            for cell in chosen:
                if cell.ask == ask and held.of(cell):
                    models.setdefault(names[cell.info.base, cell.info.digest], []).append(cell)
            if models:
                listed.append(Line(held, ask, models))
    return listed


def _names(cells: Iterable[Cell]) -> dict[tuple[str, str | None], str]:
    """What each model is called: by its digest too where another one has its name."""
    models = dict.fromkeys((cell.info.base, cell.info.digest) for cell in cells)
    several = [name for name, _ in models]
    return {
        (name, digest): name if several.count(name) == 1 else f"{name} ({digest})" for name, digest in models
    }


def verdicts(listed: Sequence[Line]) -> dict[str, dict[str, list[str]]]:
    """What composes, what does not, and what depends or is open: by way of asking, with the models that it is
    said of where these are not all.
    """
    models = {model for line in listed for model in line.cells}
    by_verdict: dict[str, dict[str, list[str]]] = {name: {} for name in (COMPOSES, FAILS, DEPENDS, OPEN)}
    for line in listed:
        by: dict[str, list[str]] = {}
        for model, cells in line.cells.items():
            by.setdefault(verdict(cells), []).append(model)
        about = "; ".join(f"{', '.join(own)}: {name}" for name, own in by.items())
        if len(by) == 1:
            about = f"{', '.join(line.cells)} only" if line.cells.keys() < models else ""
        by_verdict[line.verdict].setdefault(WAYS[line.ask], []).append(
            line.held.name + (f" ({about})" if about else "")
        )
    return {name: ways for name, ways in by_verdict.items() if ways}


def instead(listed: Sequence[Line]) -> str:
    """How often the most frequent answer is the predicted one, and how often it is the base's own."""
    cells = [cell for line in listed for several in line.cells.values() for cell in several]
    pairs = [(mostly(cell.outcomes), mostly(cell.prediction["shares"])) for cell in cells if cell.prediction]
    wrong = [pair for pair in pairs if pair != (RIGHT, RIGHT)]
    agree = sum(measured == predicted for measured, predicted in wrong)
    if not wrong:
        return ""
    text = (
        "Leaving out the cells where the right answer is predicted and most frequent, the most frequent "
        f"answer is the predicted one in {agree} of {len(wrong)} cells behind this table."
    )
    direct = next((line.cells for line in listed if (line.held.name, line.ask) == (TWO, "direct")), {})
    shares = {model: [cell.outcome(OLD) for cell in several] for model, several in direct.items()}
    if shares:
        ranges = {
            model: dict.fromkeys((percent(min(own)), percent(max(own)))) for model, own in shares.items()
        }
        kept = ", ".join(f"{' to '.join(ends)}% ({model})" for model, ends in ranges.items())
        text += (
            " Asked directly, two merged one-hop adapters leave what the base itself says to the question in "
            f"{kept} of the answers, by rule and weights."
        )
    return text


# --- why --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reason:
    """Something that explains the table: what it says, the numbers it rests on, whether they bear it out."""

    says: str
    numbers: str
    holds: bool


def reasons(cells: Sequence[Cell]) -> list[Reason]:
    """Every reason that the cells have something to say about."""
    table = {(line.held.name, line.ask): line.cells for line in lines(cells)}
    direct, steps, mixed = (table.get(key) for key in ((TWO, "direct"), (TWO, "steps"), (ONE, "direct")))
    several = [
        direct and _mixture([cell for several in direct.values() for cell in several]),
        direct and mixed and _not_merging(direct, mixed),
        _survival(curves(cell for cell in cells if swept(cell) and known(cell))),
        steps and _form(steps, cells),
    ]
    return [reason for reason in several if reason]


def _mixture(direct: Sequence[Cell]) -> Reason | None:
    """What is predicted of every merge, and that no measured one composes either."""
    predicted = [(cell, cell.prediction) for cell in direct if cell.prediction]
    if not predicted:
        return None
    margins = [said["margin"] for _, said in predicted]
    shares = [said["shares"].get(RIGHT, 0.0) for _, said in predicted]
    guesses = [1 / int(cell.info.setting["facts"] or 1) for cell, _ in predicted]
    top, models = best(direct), words_of(cell for cell, _ in predicted)
    return Reason(
        "In the theory, the output of a merged model mixes what its adapters and its base say; asked "
        "directly, another answer than the right one is the largest, and none of these merges is predicted "
        "right more often than a guess.",
        f"In {len(predicted)} predicted merges of {models} the right answer's output lies "
        f"{-max(margins):.2g} to {-min(margins):.2g} below the largest, and {percent(max(shares))}% of the "
        f"questions get it at most; measured, {right(top)} at most ({top.info.base}).",
        max(margins) < 0
        and all(share <= guess for share, guess in zip(shares, guesses, strict=True))
        and all(map(below, direct)),
    )


def _not_merging(direct: Mapping[str, Sequence[Cell]], mixed: Mapping[str, Sequence[Cell]]) -> Reason | None:
    models = [model for model in mixed if model in direct]
    if not models:
        return None
    parts = (f"{model} {right(best(mixed[model]))} against {right(best(direct[model]))}" for model in models)
    return Reason(
        f"It is not the merging ({', '.join(models)}): one adapter that holds both hops does not compose "
        "them directly either.",
        f"One adapter against the best merge of two: {'; '.join(parts)}.",
        all(below(cell) for model in models for cell in (*mixed[model], *direct[model])),
    )


def _survival(sweep: Sequence[Cell]) -> Reason | None:
    """Single hops by the weight of their own adapter: one half, the weights next to it, where it turns."""
    by: dict[float, list[Cell]] = {}
    for cell in sweep:
        if cell.group in PAIR:
            by.setdefault(weight(cell, PAIR.index(cell.group)), []).append(cell)
    by = dict(sorted(by.items()))
    less, more = ([share for share in by if (share > 1 / 2) == side] for side in (False, True))
    if 1 / 2 not in by or len(less) < 2 or not more:
        return None
    near = (less[-2], 1 / 2, more[0])
    parts = (
        " and ".join(f"{percent(cell.share)}%" for cell in by[share]) + f" at {share:g}" for share in near
    )
    # A hop dies at the weights below `low` and lives at those above `high`.
    low = max((w for w in by if all(below(c) for v in by if v <= w for c in by[v])), default=0.0)
    high = min((w for w in by if all(above(c) for v in by if v >= w for c in by[v])), default=1.0)
    return Reason(
        "A hop over a known fact survives a merge if its own adapter has enough of the weight. The edge lies "
        "near one half, so a plain average of two puts both hops close to it.",
        f"Single hops are right in {', '.join(parts)} of the weight; up to {low:g} less than one half of the "
        f"answers are right, from {high:g} on more ({words_of(sweep)}, {sum(map(len, by.values()))} cells).",
        1 / 4 <= low < high <= 3 / 4,
    )


def _form(steps: Mapping[str, Sequence[Cell]], cells: Sequence[Cell]) -> Reason | None:
    """Each model's best merge of the plain pair, whether its answers end as a chain does, its single hops."""
    chosen = {model: best(several) for model, several in steps.items()}
    hops = {
        model: [cell for cell in cells if cell.group in PAIR and _as(cell, top)]
        for model, top in chosen.items()
    }
    formed = {model: top.flag(FORM) for model, top in chosen.items() if FORM in top.frame.marks}
    if len(chosen) < 2 or not all(hops.values()) or formed.keys() != chosen.keys():
        return None
    parts = (
        f"{model} writes it in {percent(formed[model])}%, {right(top)} right, hops alone "
        + " and ".join(f"{percent(cell.share)}%" for cell in hops[model])
        for model, top in chosen.items()
    )
    formless = [model for model, share in formed.items() if share < 1 / 2]
    return Reason(
        "Step by step, two merged adapters compose where the merged model writes “the answer is”, as a chain "
        "of thought ends. Where it does not, both hops are there one at a time and the chain still fails.",
        f"Under the best merge: {'; '.join(parts)}.",
        0 < len(formless) < len(chosen)
        and all(
            below(top) if model in formless else above(top, len(steps[model]))
            for model, top in chosen.items()
        )
        and all(above(hop) for model in formless for hop in hops[model]),
    )


def _as(cell: Cell, other: Cell) -> bool:
    """Whether two cells are of one merged model."""
    same = ("base", "digest", "spec_hash", "dataset", "layers", "control", "variant")
    return all(cell.field(name) == other.field(name) for name in same)


def words_of(cells: Iterable[Cell]) -> str:
    """The models by name."""
    return ", ".join(dict.fromkeys(cell.info.base for cell in cells))
