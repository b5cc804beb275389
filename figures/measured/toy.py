"""What the toy model predicts for measured cells, in the full limit, kept in a file and joined by spec hash.

A cell's composition is built anew from what its rows say, and refused if it has another hash than the rows:
what was measured is then not what is predicted here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from figures import store
from figures.measured.cells import Cell, Place, Row, RowsError
from toytransformer.compositions import Composition, Merge, Question, catalogue, question
from toytransformer.compositions.setups import setup
from toytransformer.compositions.worlds import Prompt
from toytransformer.merging import RuleError

COMMITTED = Path(__file__).parents[1] / "data" / "toy_rows.json"
#: Neurons behind rules that act on single entries; dimension and draws where tied singular values leave the
#: limit open.
NEURONS, DIMENSION, DRAWS = 2**12, 2**12, 8
#: The library in the composition of rows without adapters, those of the base model.
PAIR = ("hop1", "hop2")


def composition(place: Place) -> Composition:
    """What was measured there. Errors: RowsError where it has another hash than the rows."""
    setting, variant = dict(place.setting), dict(place.variant)
    kept = {key: setting[key] for key in ("facts", "known", "examples", "seed")}
    merge = Merge(place.rule, place.weights, place.options)
    if place.composition.startswith("setup-"):
        bridge = {key: setting[key] for key in ("bridge_facts", "bridge_known") if key in setting}
        sigma = None
        if draw := variant.get("relabelling"):
            sigma = list(range(setting["facts"]))
            random.Random(draw).shuffle(sigma)
        number = int(place.composition.removeprefix("setup-"))
        library = place.library or PAIR
        built = setup(number, library=library, merge=merge, sigma=sigma and tuple(sigma), **kept, **bridge)
    else:
        built = catalogue.build(place.composition, library=place.library or None, merge=merge, **kept)
        steps = tuple(replace(asked, decode="steps") for asked in built.questions)
        built = replace(built, questions=(*built.questions, *steps))
    if built.spec_hash != place.spec_hash:
        raise RowsError(
            f"rows of {place.composition} ({'+'.join(place.library)} by {place.rule}, {place.model}) have "
            f"spec hash {place.spec_hash}, what they describe has {built.spec_hash}: they were measured with "
            "other code, measure them anew"
        )
    return built


def predictable(place: Place) -> bool:
    """Whether the toy has something to say: not of a base without adapters, nor of random ones."""
    return bool(place.library) and place.control != "random"


def join(
    found: Sequence[Cell],
    rows: Iterable[Row],
    tick: Callable[[int, int], Any] | None = None,
) -> tuple[list[Cell], list[Row]]:
    """Cells with their predictions, and the rows that these are.

    rows: predictions that are there; those that lack are computed, with `tick(done, all)` after each. A cell
    whose merge the toy refuses has none. Errors: RowsError on measured rows that are not those of the
    composition they describe.
    """
    known = {row["spec_hash"]: row for row in rows}
    places = dict.fromkeys(replace(cell.place, group="", decode="") for cell in found)
    specs = {place: composition(place) for place in places}
    wanted = {spec.spec_hash: spec for place, spec in specs.items() if predictable(place)}
    missing = [spec for hash_, spec in wanted.items() if hash_ not in known]
    for number, spec in enumerate(missing, start=1):
        known[spec.spec_hash] = predicted(spec)
        if tick:
            tick(number, len(missing))
    joined = [
        replace(cell, toy=_of(known[cell.place.spec_hash], cell.place)) if predictable(cell.place) else cell
        for cell in found
    ]
    return joined, [known[hash_] for hash_ in wanted]


def _of(row: Row, place: Place) -> dict[str, Any] | None:
    if "refused" in row:
        return None
    asked = row["asked"].get(place.asked)
    if asked is None:
        raise RowsError(f"the prediction of {row['spec_hash']} has no {place.asked}: compute it with --fresh")
    return {**asked, "tied": row["tied"], "regime": row["regime"], "draws": row["draws"]}


def read(path: Path = COMMITTED) -> list[Row]:
    """The predictions that are kept; none where there is no file."""
    return store.read(path) if path.exists() else []


def lacking(rows: Iterable[Row], kept: Iterable[Row]) -> int:
    """How many of the rows were not kept."""
    there = {row["spec_hash"] for row in kept}
    return sum(row["spec_hash"] not in there for row in rows)


# --- predicting -------------------------------------------------------------------------------------------


def predicted(spec: Composition) -> Row:
    """The row of one composition: for each group and way of asking shares, margin and outputs by role.

    margin: output of the right answer minus the largest other, mean over questions; step by step the smaller
    one of the two steps, each asked on its own. outputs: of the right answer, the bridge and the old one.
    Where tied singular values leave the full limit open, means over draws at finite d. A rule that cannot
    merge the toy's adapters, whose ranks are numbers of facts, has its words in "refused" instead.
    """
    import jax

    from figures.theory.margins import undetermined
    from toytransformer.prediction import predict
    from toytransformer.regimes import FullLimit, Regime, WidthLimit

    about = {
        "spec_hash": spec.spec_hash,
        "composition": spec.name,
        "library": [adapter.name for adapter in spec.adapters],
        "rule": spec.merge.rule,
        "weights": spec.merge.weights,
    }
    asked = replace(spec, questions=(*spec.questions, *_steps(spec)))
    with jax.enable_x64(True):
        regime: Regime = FullLimit(quadrature=NEURONS)
        try:
            several = [predict(asked, regime)]
        except RuleError as refusal:
            return {**about, "refused": str(refusal)}
        if tied := undetermined(several[0]):
            regime = WidthLimit(dimension=DIMENSION, quadrature=NEURONS)
            several = [predict(asked, replace(regime, seed=seed)) for seed in range(DRAWS)]
    return {
        **about,
        "tied": tied,
        "regime": store.described(regime),
        "seeds": list(range(len(several))),
        "draws": len(several),
        "asked": _summary(spec, several),
    }


def _steps(spec: Composition) -> list[Question]:
    """Each step of the two-hop questions as a question of its own, where it is not asked yet."""
    found, there = [], {(q.prompt, q.decode) for q in spec.questions}
    for each in spec.questions:
        if each.decode == "steps":
            for prompt in _hops(each):
                if (prompt, "direct") not in there:
                    found.append(question(spec.world, prompt, group="step"))
                    there.add((prompt, "direct"))
    return found


def _hops(asked: Question) -> tuple[Prompt, Prompt]:
    first, second = asked.prompt.relations
    return Prompt(asked.prompt.entity, (first,)), Prompt(asked.bridge, (second,))


def _summary(spec: Composition, several: Sequence) -> dict[str, Row]:
    groups: dict[str, list[tuple[int, Question]]] = {}
    for number, asked in enumerate(spec.questions):
        groups.setdefault(f"{asked.group}/{asked.decode}", []).append((number, asked))
    return {name: _group(members, several) for name, members in groups.items()}


def _group(members: Sequence[tuple[int, Question]], several: Sequence) -> Row:
    shares: dict[str, list[float]] = {}
    outputs: dict[str, list[float]] = {}
    margins = []
    for one in several:
        rows = {
            (q.prompt, q.decode): (q, output)
            for q, output in zip(one.composition.questions, one.output, strict=True)
        }
        names = {entity: i for i, entity in enumerate(one.composition.world.entities)}
        for number, asked in members:
            for outcome, share in asked.shares(one.distributions[number]).items():
                shares.setdefault(outcome, []).append(share)
            for role in ("correct", "bridge", "old"):
                if (entity := getattr(asked, role)) is not None:
                    outputs.setdefault(role, []).append(one.output[number][names[entity]])
            steps = _hops(asked) if asked.decode == "steps" else (asked.prompt,)
            margins.append(min(_margin(*rows[step, "direct"], names) for step in steps))
    return {
        "shares": {outcome: m for outcome, v in shares.items() if (m := _short_mean(v))},
        "margin": _short_mean(margins),
        "outputs": {role: _short_mean(v) for role, v in outputs.items()},
    }


def _margin(asked: Question, output: Any, names: dict[str, int]) -> float:
    right = names[asked.correct]
    others = [value for place, value in enumerate(output) if place != right]
    return float(output[right] - max(others))


def _short_mean(values: Sequence[float]) -> float:
    return store.short(math.fsum(values) / len(values))
