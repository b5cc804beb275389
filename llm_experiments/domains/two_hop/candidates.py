"""Answers to direct two-hop questions whose log-probabilities are wanted, and their baseline."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from llm_experiments.domains.task import Candidates
from llm_experiments.domains.two_hop.lexicon import Lexicon
from llm_experiments.domains.two_hop.scorer import entity_kinds
from llm_experiments.domains.two_hop.templates import template as paraphrase
from toytransformer.compositions import Composition, Question

#: Direct questions of at least so many hops have candidates.
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
) -> list[Candidates]:
    """The answers whose log-probabilities are wanted, of every direct question of SCORED_HOPS hops or more.

    Labels are "correct:NAME", "bridge:NAME", "world_old:NAME", "edited:NAME" and "shuffled:NAME". edited: a
    seeded sample of `others` trained answers of the kind asked for that play no other role. shuffled: the
    right answers of the other questions of its group of about `group` (see `partners`), the baseline.
    """
    scored = [
        question
        for question in composition.questions
        if question.decode == "direct" and question.prompt.hops >= SCORED_HOPS
    ]
    scored = [question for question in scored if question.correct in words.names]
    dealt, kinds = partners(scored, group, seed), entity_kinds(composition, words)
    listed = []
    for question in scored:
        texts = _candidates(question, words, kinds, dealt[question], others, seed)
        for k in templates:
            answer = paraphrase(words.worded(question.prompt.relations), k).answer
            begun = answer.partition("{y}")[0].replace("{x}", words.names[question.prompt.entity])
            listed.append(Candidates(f"{question.prompt}/{question.decode}/{k}", begun, texts))
    return listed


def _candidates(
    question: Question,
    words: Lexicon,
    kinds: Mapping[str, str],
    dealt: Sequence[str],
    others: int,
    seed: int,
) -> dict[str, str]:
    """The names scored for one question, by label."""
    names = words.names
    roles = {"correct": question.correct, "bridge": question.bridge, "world_old": question.old}
    named = {role: names[token] for role, token in roles.items() if token is not None and token in names}
    kind = kinds.get(str(question.correct))
    pool = [names[token] for token in sorted(question.edited) if token in names and kinds[token] == kind]
    pool = [name for name in dict.fromkeys(pool) if name not in named.values()]
    sample = random.Random(f"{seed} {question.prompt}").sample(pool, min(others, len(pool)))
    labelled = {f"{role}:{name}": name for role, name in named.items()}
    labelled |= {f"edited:{name}": name for name in sample}
    return labelled | {f"shuffled:{names[t]}": names[t] for t in dealt if names[t] != named["correct"]}


def partners(questions: Sequence[Question], size: int, seed: int) -> dict[Question, list[str]]:
    """The right answers of each question's group: questions on the same relations, drawn into equal parts.

    Groups of about `size` make a permutation test within them exact at a cost of `size` candidates for each
    question; they are the same for every template, rule and training seed.
    """
    dealt: dict[Question, list[str]] = {}
    for relations in dict.fromkeys(question.prompt.relations for question in questions):
        rows = [question for question in questions if question.prompt.relations == relations]
        random.Random(f"{seed} {' '.join(relations)}").shuffle(rows)
        parts = math.ceil(len(rows) / size)
        for part in range(parts):
            members = rows[part::parts]
            for question in members:
                dealt[question] = [str(other.correct) for other in members if other is not question]
    return dealt
