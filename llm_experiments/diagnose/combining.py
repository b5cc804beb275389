"""What merges of a library answer: predicted from the base and each adapter alone, and the best few measured.

K + 1 passes over the answers give f_0 and f_i, and the mixture law (`toytransformer.mixture`)

    f_w = f_0 + sum_i w_i (f_i - f_0)

what every weighting answers, token by token. It is exact to first order in the updates. log p under it is
concave in w, so the weights with the least predicted loss are found by descent. A rule that is no mixture is
predicted as the mixture nearest to its update, which leaves out what no mixture has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from scipy.optimize import minimize

from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.diagnose.answers import EXACT, AnswerSheet, Scores
from llm_experiments.diagnose.library import LibraryGeometry
from llm_experiments.domains.own.questions import Question
from llm_experiments.merges.merging import apply
from llm_experiments.merges.mixtures import weighted
from llm_experiments.models.handle import LoadedModel
from toytransformer.compositions.spec import Merge
from toytransformer.memory import require_memory
from toytransformer.mixture import mixture

#: Weights of the scale curves; of two adapters every pair of them is predicted.
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
#: What the sum with the least predicted loss is called.
FITTED = "sum with fitted weights"
#: Merges that are measured: the best predicted, beside the rules that are weighted sums.
BEST = 3
#: Matrices of logits of one pass that are in memory at once, beside one for each adapter.
COPIES = 4


@dataclass(frozen=True)
class Combination:
    """One merge: predicted, and measured where `measured` is not None.

    weights: the mixture that it is predicted as. own: the share of its update that is this mixture, 1 for a
    weighted sum.
    """

    name: str
    merge: Merge
    weights: tuple[float, ...]
    own: float
    predicted: Scores
    measured: Scores | None = None


@dataclass(frozen=True)
class Combinations:
    """What was asked and what came out.

    base: without adapters. curves: by adapter, each of SCALES -> it alone at that weight; at others than 0
    and 1 of the questions only that it owns, and not at all where there are none. owners: of every question
    the number of the adapter that knows it, None for nobody. merges: what was predicted, best first.
    held_out: predicted under weights fitted to other questions (`held_out`). reading: what counts as right.
    """

    names: tuple[str, ...]
    questions: tuple[Question, ...]
    base: Scores
    curves: Mapping[str, Mapping[float, Scores]]
    owners: tuple[int | None, ...]
    merges: tuple[Combination, ...]
    held_out: Scores | None = None
    reading: str = EXACT

    def alone(self, index: int) -> Scores:
        """An adapter alone at weight 1."""
        return self.curves[self.names[index]][1.0]

    def owned(self, index: int) -> np.ndarray:
        """Which questions an adapter knows, as a mask."""
        return np.array([owner == index for owner in self.owners])

    @property
    def known(self) -> np.ndarray:
        """Which questions the adapter that owns them answers alone: what a merge may keep or lose."""
        right = [self.alone(index).right.numpy() for index in range(len(self.names))]
        return np.array(
            [owner is not None and right[owner][place] for place, owner in enumerate(self.owners)], bool
        )

    @property
    def measured(self) -> list[Combination]:
        """The merges that were measured: those that keep most first, of these the surest."""
        there = [(self.kept(one.measured), one.measured.loss, one) for one in self.merges if one.measured]
        return [one for _, _, one in sorted(there, key=lambda found: (-found[0], found[1]))]

    def kept(self, scores: Scores | None) -> int:
        """How many known questions are still right."""
        return 0 if scores is None else int(np.sum(scores.right.numpy() & self.known))


def combine(
    loaded: LoadedModel,
    library: Sequence[AdapterWeights],
    questions: Sequence[Question],
    geometry: LibraryGeometry,
    *,
    reading: str = EXACT,
    batch: int = 16,
    tick: Callable[[str], None] = lambda what: None,
) -> Combinations:
    """Ask the base, each adapter alone and the best merges; predict all others.

    reading: what counts as right (diagnose.answers). tick: told what is asked.

    Errors: RuleError on adapters that do not fit the model, MemoryError where the logits cannot be held.
    """
    sheet, count = _sheet(loaded, library, questions, reading), len(library)
    names = tuple(adapter.name for adapter in library)
    with weighted(loaded, library) as weights:

        def ask(values: Sequence[float], what: str) -> torch.Tensor:
            tick(what)
            weights.set(values)
            return sheet.logits(loaded, batch=batch)

        units = np.eye(count)
        base, alone = _passes(ask, names)
        nothing, ones = sheet.scores(base), [sheet.scores(one) for one in alone]
        owners = tuple(who_knows(questions, names, nothing, ones))

        def curve(index: int) -> dict[float, Scores]:
            own = torch.tensor([owner == index for owner in owners])
            part = sheet.only(own)
            found = {0.0: nothing, 1.0: ones[index]}
            for scale in SCALES:
                if scale not in found and own.any():
                    tick(f"{names[index]} at weight {scale:g}")
                    weights.set(scale * units[index])
                    found[scale] = part.scores(part.logits(loaded, batch=batch)).among(own)
            return dict(sorted(found.items()))

        curves = {name: curve(index) for index, name in enumerate(names)}
        predicted, apart = predictions(sheet, base, alone, geometry), held_out(sheet, base, alone)
        # what a merge keeps is what counts, then how sure it is of all answers
        whole = Combinations(names, tuple(questions), nothing, curves, owners, ())
        order = sorted(predicted, key=lambda one: (-whole.kept(one.predicted), one.predicted.loss))
        plain = {one.name for one in order if one.own == 1 and one.name in geometry.rules}  # sum, mean
        chosen = {one.name for one in order[:BEST]} | plain
        measured = {
            one.name: sheet.scores(ask(one.weights, one.name))
            for one in order
            if one.name in chosen and one.own == 1
        }
    for one in order:
        if one.name in chosen and one.name not in measured:
            tick(one.name)
            with apply(loaded, library, one.merge):
                measured[one.name] = sheet.scores(sheet.logits(loaded, batch=batch))
    merges = tuple(
        Combination(one.name, one.merge, one.weights, one.own, one.predicted, measured.get(one.name))
        for one in order
    )
    return Combinations(names, tuple(questions), nothing, curves, owners, merges, apart, reading)


def foreseen(
    loaded: LoadedModel,
    library: Sequence[AdapterWeights],
    questions: Sequence[Question],
    geometry: LibraryGeometry,
    *,
    batch: int = 16,
) -> Combinations:
    """What `combine` predicts, from the base and each adapter at weight 1: no merge is measured.

    Errors: as combine.
    """
    sheet, names = _sheet(loaded, library, questions), tuple(adapter.name for adapter in library)
    with weighted(loaded, library) as weights:

        def ask(values: Sequence[float], what: str) -> torch.Tensor:
            weights.set(values)
            return sheet.logits(loaded, batch=batch)

        base, alone = _passes(ask, names)
    nothing, ones = sheet.scores(base), [sheet.scores(one) for one in alone]
    curves = {name: {0.0: nothing, 1.0: one} for name, one in zip(names, ones, strict=True)}
    owners = tuple(who_knows(questions, names, nothing, ones))
    merges = tuple(predictions(sheet, base, alone, geometry))
    return Combinations(names, tuple(questions), nothing, curves, owners, merges)


def _sheet(
    loaded: LoadedModel,
    library: Sequence[AdapterWeights],
    questions: Sequence[Question],
    reading: str = EXACT,
) -> AnswerSheet:
    """The questions in tokens. Errors: MemoryError where the logits of all passes cannot be held."""
    sheet = AnswerSheet.of(loaded, questions, reading)
    size = 4 * len(sheet.targets) * loaded.model.get_output_embeddings().weight.shape[0]
    require_memory(
        (len(library) + COPIES) * size, "the logits of these answers under the base and each adapter"
    )
    return sheet


def _passes(
    ask: Callable[[Sequence[float], str], torch.Tensor], names: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of the base, (position, token), and of each adapter alone, (adapter, position, token)."""
    units = np.eye(len(names)).tolist()
    base = ask((0.0,) * len(names), "the base")
    return base, torch.stack([ask(unit, f"{name} alone") for unit, name in zip(units, names, strict=True)])


def least_loss(
    sheet: AnswerSheet,
    base: torch.Tensor,
    alone: torch.Tensor,
    most: float = SCALES[-1],
    *,
    least: float = 0.0,
    inside: torch.Tensor | None = None,
) -> tuple[float, ...]:
    """argmin over least <= w_i <= most of the predicted mean -log p of the answers; it is convex in w.

    inside: a mask of the questions that count, all by default.
    """
    places = slice(None) if inside is None else inside[sheet.owner]
    base, alone = base[places], alone[:, places]

    target = sheet.targets[places, None]
    shifts = alone - base
    told = shifts.gather(2, target.expand(len(alone), -1, 1)).sum((1, 2))

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        logprobs = mixture(base, alone, values).log_softmax(1)
        # d log p / d w_i = shift_i at the target less its mean under p
        gradient = told - shifts.flatten(1) @ logprobs.exp().flatten()
        count = len(sheet.rows)
        return -float(logprobs.gather(1, target).sum()) / count, -gradient.double().numpy() / count

    start = np.full(len(alone), 1 / len(alone))
    return tuple(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(least, most)] * len(alone)).x)


def held_out(sheet: AnswerSheet, base: torch.Tensor, alone: torch.Tensor) -> Scores | None:
    """What is predicted of each half of the questions, every second one, under weights fitted to the other.

    None where there is only one question.
    """
    if len(sheet.rows) < 2:
        return None
    half, logits = torch.arange(len(sheet.rows)) % 2 == 0, torch.empty_like(base)
    for part in (half, ~half):
        places = ~part[sheet.owner]
        weights = least_loss(sheet, base, alone, inside=part)
        logits[places] = mixture(base[places], alone[:, places], weights)
    return sheet.scores(logits)


def predictions(
    sheet: AnswerSheet, base: torch.Tensor, alone: torch.Tensor, geometry: LibraryGeometry
) -> list[Combination]:
    """The rules, a grid of weights for two adapters, and the weights with the least loss."""
    count = len(alone)

    def one(name: str, merge: Merge, weights: Sequence[float], own: float) -> Combination:
        values = tuple(round(float(weight), 4) for weight in weights)
        scores = sheet.scores(mixture(base, alone, values))
        return Combination(name, merge, values, own, scores)

    found = [
        one(name, Merge(name), np.nan_to_num(figures.weights), 1.0 if figures.own > 1 - 1e-9 else figures.own)
        for name, figures in geometry.rules.items()
    ]
    fitted = tuple(round(weight, 4) for weight in least_loss(sheet, base, alone))
    found.append(one(FITTED, Merge("sum", fitted), fitted, 1.0))
    if count == 2:
        for weights in product(SCALES[1:], repeat=2):
            if weights not in ((1.0, 1.0), (0.5, 0.5)):  # sum, mean
                name = f"sum with weights {', '.join(f'{weight:g}' for weight in weights)}"
                found.append(one(name, Merge("sum", weights), weights, 1.0))
    return found


def who_knows(
    questions: Sequence[Question], names: Sequence[str], base: Scores, alone: Sequence[Scores]
) -> list[int | None]:
    """The adapter that knows each question: the one named, else the surest of those that are right where the
    base is not, None where there is none."""
    owners: list[int | None] = []
    for place, question in enumerate(questions):
        if question.adapter is not None:
            owners.append(names.index(question.adapter))
            continue
        right = [i for i in range(len(names)) if alone[i].right[place] and not base.right[place]]
        owners.append(max(right, key=lambda i: float(alone[i].logprob[place]), default=None))
    return owners
