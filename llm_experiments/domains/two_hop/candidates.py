"""Answers whose log-probabilities are wanted, to questions and to the steps of chains, and their baseline."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llm_experiments.domains.task import LOGPROBS, Candidates
from llm_experiments.domains.two_hop.lexicon import Lexicon
from llm_experiments.domains.two_hop.rendering import FIRST, SECOND, render
from llm_experiments.domains.two_hop.scorer import HOP1, HOP2, WRITTEN, entity_kinds
from llm_experiments.domains.two_hop.templates import template as paraphrase
from toytransformer.compositions import Composition, Fact, Question, SpecError, World, question
from toytransformer.compositions.spec import hops

#: Direct questions of at least so many hops have a shuffled baseline.
SCORED_HOPS = 2
#: Trained answers that are candidates beside those with a role; questions whose right answers are candidates
#: to each other.
OTHERS, GROUP = 4, 10


def candidates(
    composition: Composition,
    words: Lexicon,
    templates: Sequence[int],
    *,
    others: int = OTHERS,
    group: int = GROUP,
    seed: int = 0,
    level: str = "all",
) -> list[Candidates]:
    """The answers whose log-probabilities are wanted, of every question of a level in every wording.

    Labels are "correct:NAME", "bridge:NAME", "world_old:NAME", "edited:NAME" and "shuffled:NAME". edited: a
    seeded sample of `others` trained answers of the kind asked for that play no other role. shuffled: of
    direct questions of SCORED_HOPS hops or more, the right answers of the other questions of its group of
    about `group` (see `partners`), the baseline.
    Answers step by step name something at three places, each scored as the one-hop question it answers:
    HOP1, behind the form alone; HOP2, behind the right first step; WRITTEN, behind the first step as it was
    written. All candidates of the question's first and second step are theirs.
    Errors: SpecError on an unknown level.
    """
    if level not in LOGPROBS:
        raise SpecError(f"logprobs {level!r} is unknown: use one of {', '.join(LOGPROBS)}")
    asked = [
        question
        for question in composition.questions
        if question.correct in words.names
        and (level == "all" or (level == "direct" and question.decode == "direct"))
    ]
    scored = [q for q in asked if q.decode == "direct" and q.prompt.hops >= SCORED_HOPS]
    dealt, kinds = partners(scored, group, seed), entity_kinds(composition, words)
    listed = []
    for asking in asked:
        named = {"": asking}
        if asking.decode == "steps":
            first, second = (
                question(composition.world, fact.prompt) for fact in hops(composition.world, asking.prompt)
            )
            named = {HOP1: first, HOP2: second, WRITTEN: second}
        for place, about in named.items():
            pool = replace(about, edited=asking.edited)
            texts = _candidates(pool, words, kinds, dealt.get(asking, ()), others, seed)
            for k in templates:
                begun = None if place == WRITTEN else _begun(composition.world, asking, place, words, k)
                listed.append(Candidates(f"{asking.prompt}/{asking.decode}/{k}", begun, texts, place))
    return listed


def _begun(world: World, asking: Question, place: str, words: Lexicon, template: int) -> str:
    """The right answer up to the name at a place."""

    def begun(fact: Fact) -> str:
        answer = paraphrase(words.worded(fact.prompt.relations), template).answer
        return answer.partition("{y}")[0].replace("{x}", words.names[fact.prompt.entity])

    if not place:
        return begun(Fact(asking.prompt, str(asking.correct)))
    first, second = hops(world, asking.prompt)
    step = render(first, None, words, template)
    if place == HOP1:
        return f"{FIRST}{step.question} {begun(first)}"
    asked = render(second, None, words, template).question
    return f"{FIRST}{step.question} {step.answer} {SECOND}{asked} {begun(second)}"


def _candidates(
    asking: Question,
    words: Lexicon,
    kinds: Mapping[str, str],
    dealt: Sequence[str],
    others: int,
    seed: int,
) -> dict[str, str]:
    """The names scored for one question, by label."""
    names = words.names
    roles = {"correct": asking.correct, "bridge": asking.bridge, "world_old": asking.old}
    named = {role: names[token] for role, token in roles.items() if token is not None and token in names}
    kind = kinds.get(str(asking.correct))
    pool = [names[token] for token in sorted(asking.edited) if token in names and kinds[token] == kind]
    pool = [name for name in dict.fromkeys(pool) if name not in named.values()]
    sample = random.Random(f"{seed} {asking.prompt}").sample(pool, min(others, len(pool)))
    labelled = {f"{role}:{name}": name for role, name in named.items()}
    labelled |= {f"edited:{name}": name for name in sample}
    return labelled | {f"shuffled:{names[t]}": names[t] for t in dealt if names[t] != named["correct"]}


def partners(questions: Sequence[Question], size: int, seed: int) -> dict[Question, list[str]]:
    """The right answers of each question's group: questions on the same relations, drawn into equal parts.

    Groups of about `size` make a permutation test within them exact at a cost of `size` candidates for each
    question; they are the same for every template, rule and training seed.
    """
    dealt: dict[Question, list[str]] = {}
    for relations in dict.fromkeys(one.prompt.relations for one in questions):
        rows = [one for one in questions if one.prompt.relations == relations]
        random.Random(f"{seed} {' '.join(relations)}").shuffle(rows)
        parts = math.ceil(len(rows) / size)
        for part in range(parts):
            members = rows[part::parts]
            for one in members:
                dealt[one] = [str(other.correct) for other in members if other is not one]
    return dealt
