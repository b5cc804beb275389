"""T3 and T4, scale curves and the mixture law: what was measured of the base and of each adapter alone.

    P(hop j) = s_j(w_j - l w_partner)     s_j: share of each outcome of adapter j alone, by its weight  (T3)
    P(hop j = o) = kept s_j(w_j; o) + q(o), o an answer that the partner brings                         (T4)
    P(chain) = k P(hop 1) P(hop 2)        k: the base's chains with both facts in the prompt: form times
                                          copying
    two hops at once                      the candidate with the largest f0 + sum_i w_i (f_i - f0), in
                                          log-probabilities (theory.md, section 9)

w is the weight that the merge gives: 1 for `sum`, 1/n for `mean`, and for routed rules the realised gate at
that question, which is a measurement of the merged model's routing and not of its answers. The leak
l is 0: of two adapters with a bridge each loses its own hop, not its partner's. Nothing is
fitted to merged answers.

T4 takes from the partner what it does to these questions alone, at the weight it is given: q(o) is its share
of outcome o there, and where it says what the base says or the right answer, a share of `kept`, the adapter's
own answer stands. An adapter that holds a bridge under the other's relation moves that relation's questions
as well; T3 knows nothing of it. T4 was made on the merges of one draw of names, those that T0 to T3 had been
registered for.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from predictors.registry import Alone, BaseModel, NoPredictionError, Shares, predictor
from predictors.scale_curves import ScaleCurve
from results.cells import RIGHT, Cell
from results.rows import BASE
from toytransformer.compositions import Composition
from toytransformer.scales import effective

#: One leak a base.
LEAK = 0.0
#: The variant of cells with the facts of their question in the prompt.
CONTEXT = {"context": "facts"}
#: What a partner says where it leaves a hop to the hop's own adapter.
LEFT = ("old", RIGHT)
#: Candidates that belong to other questions.
OTHERS = "shuffled"
Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Curves(Alone):
    """What T3 is given.

    curves: by adapter (`identity`) and question kind its curve of each outcome. k: None where chains with
    the facts in the prompt were not measured. base, scores: by question kind and item the log-probabilities
    of candidates by "role:answer", of the base and of each adapter at weight 1. gates: by spec hash and
    question kind the mean realised weight of each adapter at every place.
    """

    curves: Mapping[str, Mapping[str, Mapping[str, ScaleCurve]]]
    k: float | None = None
    base: Mapping[str, Scores] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, Scores]] = field(default_factory=dict)
    gates: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]] = field(default_factory=dict)

    @classmethod
    def of(cls, cells: Iterable[Cell], specs: Mapping[str, object]) -> Curves:
        """From the cells of one base, data set and draw of names; merged ones give their gates alone."""
        points: dict[tuple[str, str], dict[float, Cell]] = {}
        base: dict[str, Scores] = {}
        scores: dict[str, dict[str, Scores]] = {}
        gates: dict[str, dict[str, Mapping[str, Mapping[str, float]]]] = {}
        k = None
        for cell in cells:
            info, kind = cell.info, cell.question_kind
            variant = dict(info.variant)
            if variant == CONTEXT and info.control == BASE and kind == CHAIN:
                k = cell.share
            if variant or info.spec_hash is None:
                continue
            if info.control == BASE:
                base[kind] = _scores(cell)
            elif len(info.library) == 1 and info.control == info.library[0] and info.weights:
                spec = specs.get(info.spec_hash)
                if spec is None:
                    continue
                (adapter,) = identities(Composition.from_json(json.dumps(spec)))
                points.setdefault((adapter, kind), {})[info.weights[0]] = cell
                if info.weights[0] == 1:
                    scores.setdefault(adapter, {})[kind] = _scores(cell)
            elif len(info.library) > 1 and info.control is None:
                places = {place for gate in cell.gates for place in gate or ()}
                if places:
                    gates.setdefault(info.spec_hash, {})[kind] = {place: cell.gate(place) for place in places}
        curves: dict[str, dict[str, dict[str, ScaleCurve]]] = {}
        for (adapter, kind), several in points.items():
            if len(several) > 1:
                outcomes = next(iter(several.values())).outcomes
                curves.setdefault(adapter, {})[kind] = {o: ScaleCurve.of(several, o) for o in outcomes}
        return cls(curves, k, base, scores, gates)


#: The kinds of questions that it speaks of.
HOPS, DIRECT, CHAIN = ("hop1/direct", "hop2/direct"), "two-hop/direct", "two-hop/steps"


def identities(spec: Composition) -> tuple[str, ...]:
    """What each adapter is trained on, as text: the same in every composition that holds it.

    Its rank is left out, which the toy gives to all adapters of a library alike.
    """
    adapters = json.loads(spec.to_json())["adapters"]
    return tuple(json.dumps({k: v for k, v in adapter.items() if k != "rank"}) for adapter in adapters)


def _scores(cell: Cell) -> Scores:
    """By item the mean log-probabilities over training seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for item, scored in zip(cell.column("item"), cell.logprobs, strict=True):
        for label, value in (scored or {}).items():
            found.setdefault(item, {}).setdefault(label, []).append(value)
    return {
        item: {label: sum(values) / len(values) for label, values in by_label.items()}
        for item, by_label in found.items()
    }


Hop = Callable[["Curves", Sequence[str], int, Sequence[float]], Mapping[str, float]]
NEEDS = "the base and each adapter alone over weights, and realised gates"


@predictor("T3", "scale curves of single adapters and the mixture law", needs=NEEDS, lasts=False)
def curves(spec: Composition, base: BaseModel | None) -> Shares:
    """Shares of outcomes of the kinds of questions that were measured alone.

    Errors: NoPredictionError on libraries of other than two adapters, rules that neither add products at
    given weights nor have realised gates, and adapters without a curve.
    """
    return _by_curves("T3", spec, base, _hop)


@predictor("T4", "T3 with what each adapter alone does to the other's questions", needs=NEEDS, lasts=False)
def beside(spec: Composition, base: BaseModel | None) -> Shares:
    """As T3, hops with the partner's own answers. Errors: as T3, and where those were not measured."""
    return _by_curves("T4", spec, base, _hop_beside)


def _by_curves(name: str, spec: Composition, base: BaseModel | None, said: Hop) -> Shares:
    alone = base.alone if base is not None else None
    if not isinstance(alone, Curves):
        raise NoPredictionError(f"{name} needs scale curves: run the experiment `scales` on this base")
    adapters = identities(spec)
    if len(adapters) != 2:
        raise NoPredictionError(f"{len(adapters)} adapters: {name} speaks of two, one for each hop")
    if lacking := [a.name for a, own in zip(spec.adapters, adapters, strict=True) if own not in alone.curves]:
        raise NoPredictionError(f"adapter {lacking[0]!r} was not measured alone over weights")
    found: dict[str, Mapping[str, float]] = {}
    for hop, kind in enumerate(HOPS):
        found[kind] = said(alone, adapters, hop, weights(spec, alone, kind, "answer"))
    if alone.k is not None:
        right = alone.k
        for hop, kind in enumerate(HOPS):
            asked = weights(spec, alone, CHAIN, kind.partition("/")[0])
            right *= said(alone, adapters, hop, asked).get(RIGHT, 0.0)
        found[CHAIN] = {RIGHT: right, "other": 1 - right}
    if direct := _direct(alone, adapters, weights(spec, alone, DIRECT, "answer")):
        found[DIRECT] = direct
    return found


def weights(spec: Composition, alone: Curves, kind: str, place: str) -> tuple[float, ...]:
    """Of each adapter the weight that the merge gives it. Errors: NoPredictionError where nobody knows."""
    names = [adapter.name for adapter in spec.adapters]
    gates = alone.gates.get(spec.spec_hash, {}).get(kind, {})
    return realised(spec.merge.rule, names, spec.merge.weights, gates, place, kind)


def realised(
    rule: str,
    names: Sequence[str],
    given: Sequence[float] | None,
    gates: Mapping[str, Mapping[str, float]],
    place: str,
    kind: str,
) -> tuple[float, ...]:
    """The weights of a rule on these adapters: its own, or the gates that were realised at a place, else near
    it.

    Errors: NoPredictionError on rules that have none, and where they were not measured.
    """
    if rule == "sum":
        return tuple(given or (1.0,) * len(names))
    if rule == "mean":
        return (1 / len(names),) * len(names)
    gate = gates.get(place) or gates.get("answer") or gates.get("end of prompt") or gates.get("prompt")
    if rule != "arrow-products":
        raise NoPredictionError(f"{rule!r} gives the products of adapters no weights of their own")
    if not gate:
        raise NoPredictionError(f"the weights that {rule!r} gives to '{kind}' were not measured")
    return tuple(gate[name] for name in names)


def _hop(alone: Curves, adapters: Sequence[str], hop: int, given: Sequence[float]) -> dict[str, float]:
    """Each outcome of a hop's own adapter at the effective weight."""
    return _alone(alone, adapters[hop], HOPS[hop], effective(given[hop], given[1 - hop], LEAK))


def _hop_beside(alone: Curves, adapters: Sequence[str], hop: int, given: Sequence[float]) -> dict[str, float]:
    """The same where the partner leaves what the base says, else what the partner says."""
    own = _alone(alone, adapters[hop], HOPS[hop], given[hop])
    partner = _alone(alone, adapters[1 - hop], HOPS[hop], given[1 - hop])
    kept = sum(partner.get(outcome, 0.0) for outcome in LEFT)
    outcomes = dict.fromkeys((*own, *partner))
    return {
        outcome: kept * own.get(outcome, 0.0) + (0.0 if outcome in LEFT else partner.get(outcome, 0.0))
        for outcome in outcomes
    }


def _alone(alone: Curves, adapter: str, kind: str, weight: float) -> dict[str, float]:
    """Each outcome of one adapter at a weight, which is held within the measured ones; they sum to 1."""
    by_outcome = alone.curves[adapter].get(kind)
    if not by_outcome:
        raise NoPredictionError(f"'{kind}' was not asked of one of the adapters alone")
    shares = {
        outcome: max(0.0, curve(min(weight, curve.weights[-1]))) for outcome, curve in by_outcome.items()
    }
    return {outcome: share / sum(shares.values()) for outcome, share in shares.items()}


def _direct(alone: Curves, adapters: Sequence[str], given: Sequence[float]) -> dict[str, float]:
    """Shares of the roles of the largest candidates by the mixture law, over items that all have scored."""
    base = alone.base.get(DIRECT, {})
    singles = [alone.scores.get(adapter, {}).get(DIRECT, {}) for adapter in adapters]
    won: Counter[str] = Counter()
    for item, before in base.items():
        if all(item in scores for scores in singles):
            labels = [
                label
                for label in before
                if not label.startswith(OTHERS) and all(label in scores[item] for scores in singles)
            ]
            if labels:
                mixed = {
                    label: before[label]
                    + sum(
                        w * (scores[item][label] - before[label])
                        for w, scores in zip(given, singles, strict=True)
                    )
                    for label in labels
                }
                won[_outcome(max(mixed, key=lambda label: mixed[label]))] += 1
    return {outcome: number / won.total() for outcome, number in won.items()}


def _outcome(label: str) -> str:
    role = label.partition(":")[0]
    return role if role in (RIGHT, "bridge", "old", "edited") else "other"
