"""T2, the measured kernel: the base model's own features and log-probabilities in the place of the toy's.

Adapters store their facts by the closed form (eq. 23) in the base's features, in the wording that they are
asked in (a bridge's, which nobody asks about, in the mean of its training wordings); a step of a chain reads
them in the features of that step. Scores are log-probabilities. A fact is stored by moving the new answer
against what the base says, as the gradient of cross-entropy does,

    change = g (i_new - q),   q = the base's probabilities of the other answers,   g = 2 m / |i_new - q|^2,

m the base's log-odds against the new answer: the adapter is as sure of the new answer as the base was that it
is wrong. No number is fitted. That facts are stored in their own wording, that layers count by their size and
that the names' cosines in the unembedding are left out was chosen by how adapters alone are predicted. The
answer is the largest score; two hops in steps are both steps in turn, times the share of chains that the base
gets right with the facts in front (copying and form).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from predictors.registry import BaseModel, NoPredictionError, Shares, needed, predictor
from toytransformer import merging
from toytransformer.adapters import LoRA, closed_form
from toytransformer.compositions import OUTCOMES, Composition, Fact, Prompt, Question
from toytransformer.compositions.spec import hops, trained_answers
from toytransformer.merging import MergeContext, RuleError
from toytransformer.model_features import ModelFeatures, Row

Array = np.ndarray

#: Of the Gram matrix, in units of its mean diagonal: what half precision leaves uncertain.
RIDGE = 1e-3


@predictor("T2", "the base's own features and log-probabilities", needs="features of the base")
def kernel(spec: Composition, base: BaseModel | None) -> Shares:
    """Shares of outcomes by group and way of asking, the mean over the wordings of the test.

    Errors: NoPredictionError where the features lack a prompt, an answer has no name there, or the rule acts
    on single entries of Delta W.
    """
    from toytransformer.regimes import RegimeError

    model = needed(base, "T2").features
    counts: dict[str, dict[str, float]] = {}
    for wording in model.wordings:
        try:
            answers = {form: _answers(spec, model, form, wording) for form in ("direct", "steps")}
        except (RegimeError, RuleError) as error:
            raise NoPredictionError(str(error)) from error
        for question in spec.questions:
            share = counts.setdefault(f"{question.group}/{question.decode}", dict.fromkeys(OUTCOMES, 0.0))
            if question.decode == "direct":
                share[_outcome(spec, model, question, wording, answers["direct"][question.prompt].now)] += 1
            else:
                right = float(model.about["told"]["steps"])
                answer = _in_steps(model, question, wording, answers["steps"])
                share[_outcome(spec, model, question, wording, answer)] += right
                share["other"] += 1 - right
    return {
        name: {outcome: number / sum(share.values()) for outcome, number in share.items() if number}
        for name, share in counts.items()
    }


@dataclass(frozen=True)
class _Said:
    """The names with the largest score, of the merged model and of the base."""

    now: str
    before: str


def _answers(spec: Composition, model: ModelFeatures, form: str, wording: int) -> dict[Prompt, _Said]:
    """What is answered to every prompt asked in this form."""
    asked = _asked(spec, form)
    if not asked:
        return {}
    rule = merging.resolve(spec.merge.rule)
    if rule.needs_data:
        raise NoPredictionError(f"{spec.merge.rule} is fitted on examples, whose features are not kept")
    from toytransformer.regimes import Measured

    regime = Measured(model=model, form=form, wording=wording, own_wording=True)
    stored = [fact for adapter in spec.adapters for fact in adapter.stored(spec.world)]
    prompts = tuple(dict.fromkeys((*(fact.prompt for fact in stored), *asked)))
    features = regime.features(prompts, neurons=rule.needs_neurons)
    shown = features.values if features.trained is None else features.trained
    # kernel ridge: every prompt has a small direction of its own while it is trained
    apart = math.sqrt(RIDGE) * np.eye(len(prompts))
    trained = dict(zip(prompts, np.hstack([shown, apart]), strict=True))
    now = dict(zip(prompts, np.hstack([features.values, 0 * apart]), strict=True))
    adapters, means = [], []
    for adapter in spec.adapters:
        facts = adapter.stored(spec.world)
        rows = np.stack([trained[fact.prompt] for fact in facts])
        means.append(rows.mean(axis=0))
        gauge = "plain" if rule.gauge_invariant else adapter.gauge
        adapters.append(closed_form(rows, changes(model, facts), gauge=gauge))
    rank = max(adapter.rank for adapter in adapters)
    context = MergeContext(logit_scale=features.logit_scale, own_means=np.stack(means))
    merged = merging.merge(tuple(_padded(adapter, rank) for adapter in adapters), spec.merge, context)
    before = model.logprobs[model.places([(str(prompt), form, wording) for prompt in asked])]
    after = before + merged.shift(np.stack([now[prompt] for prompt in asked]))
    names = model.entities
    return {
        prompt: _Said(names[int(new.argmax())], names[int(old.argmax())])
        for prompt, new, old in zip(asked, after, before, strict=True)
    }


def changes(model: ModelFeatures, facts: Sequence[Fact]) -> Float[Array, "fact name"]:
    """g (i_new - q) of every fact, in nats; see above.

    Errors: NoPredictionError on an answer that has no name and on a prompt that was not read as trained.
    """
    place = {name: i for i, name in enumerate(model.entities)}
    if missing := [fact.answer for fact in facts if fact.answer not in place]:
        raise NoPredictionError(f"{missing[0]!r} is not among the names of {model.name}")
    rows: list[Row] = [(str(fact.prompt), "stored", None) for fact in facts]
    if lacking := [row for row in rows if row not in model]:
        raise NoPredictionError(f"'{lacking[0][0]}' is not among the trained prompts of {model.name}")
    scores = model.logprobs[model.places(rows)]
    each, new = np.arange(len(facts)), np.array([place[fact.answer] for fact in facts])
    others = scores.copy()
    others[each, new] = -np.inf
    total = logsumexp(others, axis=1)
    change = -np.exp(others - total[:, None])
    change[each, new] += 1
    odds = np.abs(total - scores[each, new])
    return (2 * odds / (change**2).sum(axis=1))[:, None] * change


def _asked(spec: Composition, form: str) -> list[Prompt]:
    """The prompts asked at once, or the right steps of those asked step by step."""
    if form == "direct":
        return list(dict.fromkeys(q.prompt for q in spec.questions if q.decode == "direct"))
    several = [q for q in spec.questions if q.decode == "steps"]
    return list(dict.fromkeys(fact.prompt for q in several for fact in hops(spec.world, q.prompt)))


def _in_steps(
    model: ModelFeatures, question: Question, wording: int, answers: Mapping[Prompt, _Said]
) -> str | None:
    """Each step's answer asked further; where the first is the base's own, the base's own end."""
    first, *later = question.prompt.relations
    step = Prompt(question.prompt.entity, (first,))
    unmoved = answers[step].now == answers[step].before
    for relation in later:
        following = Prompt(answers[step].now, (relation,))
        if following not in answers:
            said = model.said.get(f"{question.prompt}/steps/{wording}")
            return said if unmoved else None
        step = following
    return answers[step].now


def _outcome(
    spec: Composition, model: ModelFeatures, question: Question, wording: int, answer: str | None
) -> str:
    """Which outcome a name is, the old answer being what the base says to the very item."""
    said = model.said.get(f"{question.prompt}/{question.decode}/{wording}")
    if answer is not None:
        for outcome, entity in (("correct", question.correct), ("bridge", question.bridge), ("old", said)):
            if answer == entity:
                return outcome
    return "edited" if answer in trained_answers(spec.adapters) else "other"


def _padded(adapter: LoRA, rank: int) -> LoRA:
    """Zero columns up to a rank, as adapters of one recipe have one rank."""
    more = ((0, 0), (0, rank - adapter.rank))
    return LoRA(np.pad(adapter.write, more), np.pad(adapter.read, more))
