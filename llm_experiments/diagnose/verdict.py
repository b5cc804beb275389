"""The doctor's verdict in words: merge these adapters, and how, or do not, and what to do instead.

Every sentence has the figure it rests on, shares with Wilson's 95% interval over questions. A merge is
recommended where the lower end of what it keeps is at least GOOD, and advised against where the upper end is
below; in between it cannot be told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from llm_experiments.diagnose.combining import FITTED, Combination, Combinations
from llm_experiments.diagnose.leaks import Leaks
from llm_experiments.diagnose.staged import COPY, FORM, STEP, WHOLE, Staged
from results.statistics import wilson

#: The share of answers that a merge has to keep to be worth recommending.
GOOD = 0.8
#: Most questions that are proposed to decide an open case.
ENOUGH = 2000
COMBINE, SEPARATE, OPEN = "combine", "do not combine", "cannot tell"


@dataclass(frozen=True)
class Sentence:
    """kind: verdict, instead, adapter, pair, steps, prediction or composed. The interval is None for what is
    no share."""

    kind: str
    text: str
    figure: float | None = None
    interval: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """decision: COMBINE, SEPARATE or OPEN. merge: the best that was measured, None where none was.

    staged: what fails in questions with steps, None where there are none.
    """

    decision: str
    merge: Combination | None
    sentences: tuple[Sentence, ...]
    staged: Staged | None = None


def verdict(asked: Combinations, leaks: Leaks | None = None, staged: Staged | None = None) -> Verdict:
    """From what was predicted and measured. leaks: for what to do instead; staged: questions in steps."""
    known, best = int(asked.known.sum()), next(iter(asked.measured), None)
    adapters = [_adapter(asked, index, best) for index in range(len(asked.names))]
    if best is None or not known:
        text = "Cannot tell: no question is answered right by the adapter that should know it, alone; "
        text += "there is nothing that a merge could keep"
        return Verdict(OPEN, best, (Sentence("verdict", text, 0.0), *adapters))
    kept = asked.kept(best.measured)
    low, high = interval = wilson(kept, known)
    share = f"{kept} of {known} answers that its adapters know ({low:.0%} to {high:.0%})"
    how = best.name if best.own < 1 or _weights(best) in best.name else f"{best.name} ({_weights(best)})"
    sentences = []
    if low >= GOOD:
        decision = COMBINE
        text = f"Combine them by {how}: it keeps {share}"
    elif high < GOOD:
        decision = SEPARATE
        text = f"Do not combine them: the best of {len(asked.measured)} merges measured, {how}, keeps {share}"
    else:
        decision = OPEN
        text = f"Cannot tell: the best merge measured, {how}, keeps {share}, and {GOOD:.0%} lies between"
        if (needed := questions_needed(kept / known)) is not None:
            text += f"; about {needed} questions would tell if the share stays"
    sentences.append(Sentence("verdict", text, kept / known, interval))
    if decision != COMBINE:
        sentences += _instead(asked, leaks, kept)
    sentences += [*adapters, *_pairs(asked, best), *_composed(asked, best)]
    sentences += [*(_steps(staged) if staged else ()), *_prediction(asked)]
    return Verdict(decision, best, tuple(sentences), staged)


def questions_needed(share: float) -> int | None:
    """The least number of questions whose interval at this share leaves out GOOD; None beyond ENOUGH."""
    for count in range(1, ENOUGH + 1):
        low, high = wilson(share * count, count)
        if low >= GOOD or high < GOOD:
            return count
    return None


def _weights(merge: Combination) -> str:
    return ", ".join(f"{weight:g}" for weight in merge.weights)


def _adapter(asked: Combinations, index: int, best: Combination | None) -> Sentence:
    """What an adapter knows alone, and what of it the merge loses."""
    name, own, alone = asked.names[index], asked.owned(index), asked.alone(index).right.numpy()
    count, knows = int(own.sum()), int((own & alone).sum())
    if not count:
        return Sentence("adapter", f"{name} owns none of the questions: nothing is said of it")
    text = f"{name} alone answers {knows} of its {count} questions"
    if not knows or best is None or best.measured is None:
        return Sentence("adapter", text, knows / count, wilson(knows, count))
    lost = int((own & alone & ~best.measured.right.numpy()).sum())
    low, high = wilson(lost, knows)
    text += f"; merged, {lost} of these {knows} are lost ({low:.0%} to {high:.0%})"
    return Sentence("adapter", text, lost / knows, (low, high))


def _instead(asked: Combinations, leaks: Leaks | None, kept: int) -> Iterator[Sentence]:
    """What to do in place of a merge."""
    single = [asked.kept(asked.alone(index)) for index in range(len(asked.names))]
    index = int(np.argmax(single))
    if single[index] >= kept:
        text = f"{asked.names[index]} alone keeps as many, {single[index]}: use it by itself"
        yield Sentence("instead", text, float(single[index]))
    owners = [i for i in range(len(asked.names)) if asked.owned(i).any()]
    if leaks is not None and leaks.gates is not None and len(owners) > 1:
        gates = [leaks.gates[asked.names[i]][i] for i in owners]
        low, share = min(gates), ", ".join(f"{gate:.2f}" for gate in gates)
        if low > 1 / 2:
            text = (
                f"Route in place of merging: Arrow gives each adapter most of the weight on its own ({share})"
            )
        else:
            text = (
                f"Arrow would not tell them apart either: the weight of each on its own questions is {share}"
            )
        yield Sentence("instead", text, low)
    weak = {name: _best_scale(asked, name) for name in asked.names}
    if late := [name for name, scale in weak.items() if scale is not None and scale > 1]:
        scale = weak[late[0]]
        text = f"{late[0]} is right more often at weight {scale:g} than at 1: it was scaled too low"
        yield Sentence("instead", text, scale)
    yield Sentence("instead", "Train one adapter on the questions of all of them, or ask in steps")


def _best_scale(asked: Combinations, name: str) -> float | None:
    """The least weight at which an adapter alone is right on most of its questions; None without any."""
    own = asked.owned(asked.names.index(name))
    if not own.any():
        return None
    counts = {scale: int((own & scores.right.numpy()).sum()) for scale, scores in asked.curves[name].items()}
    return min(counts, key=lambda scale: (-counts[scale], scale))


def _pairs(asked: Combinations, best: Combination) -> Iterator[Sentence]:
    """Adapters that answer one question in two ways, and those that answer each other's."""
    assert best.measured is not None
    right, owned = best.measured.right.numpy(), [asked.owned(i) for i in range(len(asked.names))]
    for i, j in combinations(range(len(asked.names)), 2):
        first, second = ({asked.questions[k].question: k for k in np.flatnonzero(owned[n])} for n in (i, j))
        apart = [
            (first[text], second[text])
            for text in first.keys() & second.keys()
            if asked.questions[first[text]].answer != asked.questions[second[text]].answer
        ]
        both = f"{asked.names[i]} and {asked.names[j]}"
        if apart:
            kept = [int(right[a]) + int(right[b]) for a, b in apart]
            text = f"{both} contradict each other on {len(apart)} questions, of which no merge can keep both "
            text += f"answers: merged, {sum(kept)} of these {2 * len(apart)} answers are right"
            yield Sentence("pair", text, float(len(apart)))
            continue
        crossed = [
            (int((owned[b] & asked.alone(a).right.numpy()).sum()), int(owned[b].sum()))
            for a, b in ((i, j), (j, i))
        ]
        if all(count and wilson(hits, count)[0] >= 1 / 2 for hits, count in crossed):
            (there, of), (back, known) = crossed
            text = (
                f"{both} agree: the first answers {there} of the second's {of} questions, the second {back} "
            )
            text += f"of the first's {known}; either alone may do"
            yield Sentence("pair", text, (there + back) / (of + known))


def _steps(staged: Staged) -> Iterator[Sentence]:
    """What fails in questions that need several facts."""
    count = len(staged.questions)
    whole = sum(one.whole for one in staged.merged)
    text = f"Of {count} questions in steps {staged.merge} answers {whole} at once"
    yield Sentence("steps", text, whole / count, wilson(whole, count))
    if failed := staged.fails(STEP):
        places = [place for place, one in enumerate(staged.merged) if one.fails == STEP]
        steps = range(max(len(question.steps) for question in staged.questions))
        shown = [
            f"step {step + 1} in {len(wrong)} ({lost} of these an adapter or the base answers alone)"
            for step in steps
            if (wrong := [p for p in places if not all(staged.merged[p].steps[step : step + 1])])
            for lost in [sum(staged.lost(place, step) is not None for place in wrong)]
        ]
        text = f"In {failed} of {count} a step by itself does not survive: {', '.join(shown)}"
        yield Sentence("steps", text, failed / count, wilson(failed, count))
    if failed := staged.fails(FORM):
        knows = staged.knows_form()
        best = max((name for name in knows if name != staged.merge), key=lambda name: knows[name])
        text = (
            f"In {failed} of {count} all steps survive and the form is missing: with their answers told in "
        )
        text += f"front it is not right either; the best alone, {best}, puts {knows[best]:.0%} together"
        yield Sentence("steps", text, failed / count, wilson(failed, count))
    if failed := staged.fails(COPY):
        text = (
            f"In {failed} of {count} steps and form are there, and an answer that is told is not gone on from"
        )
        yield Sentence("steps", text, failed / count, wilson(failed, count))
    if failed := staged.fails(WHOLE):
        text = (
            f"In {failed} of {count} all is there but the first steps are not answered silently: ask in steps"
        )
        yield Sentence("steps", text, failed / count, wilson(failed, count))


def _composed(asked: Combinations, best: Combination) -> Iterator[Sentence]:
    """Questions that no part answers and the merge does."""
    assert best.measured is not None
    right = [asked.base.right.numpy(), *(asked.alone(i).right.numpy() for i in range(len(asked.names)))]
    nobody = ~np.any(right, axis=0)
    if count := int(nobody.sum()):
        made = int((nobody & best.measured.right.numpy()).sum())
        low, high = wilson(made, count)
        text = f"Of {count} questions that neither the base nor an adapter alone answers, the merge answers "
        text += f"{made} ({low:.0%} to {high:.0%})"
        yield Sentence("composed", text, made / count, (low, high))


def _prediction(asked: Combinations) -> Iterator[Sentence]:
    """How far the law was off, on the merges that were measured."""
    pairs = [(one.predicted.share, one.measured.share) for one in asked.merges if one.measured is not None]
    apart = [abs(first - second) for first, second in pairs]
    if apart:
        text = f"Predicted and measured shares are {np.mean(apart):.2f} apart on average over {len(apart)} "
        text += f"merges, {max(apart):.2f} at most"
        yield Sentence("prediction", text, float(np.mean(apart)))
    fitted = next((one for one in asked.merges if one.name == FITTED), None)
    if asked.held_out is not None and fitted is not None:
        share, count = asked.held_out.share, len(asked.held_out.right)
        low, high = interval = wilson(int(asked.held_out.right.sum()), count)
        text = f"Weights fitted to half of the questions are predicted right in {share:.0%} of the other "
        text += f"half ({low:.0%} to {high:.0%}), fitted to all in {fitted.predicted.share:.0%}"
        yield Sentence("prediction", text, share, interval)
