"""Measures a composition on a language model: its questions asked, the answers read, one Record for each.

What is merged is whatever hooks are active on the model while these functions run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llm_experiments.asking.decoding import answers, candidate_logprobs
from llm_experiments.domains.two_hop.lexicon import Lexicon
from llm_experiments.domains.two_hop.rendering import Example, asked, render
from llm_experiments.domains.two_hop.templates import SIGNATURES
from llm_experiments.domains.two_hop.templates import template as paraphrase
from llm_experiments.models.handle import LoadedModel
from llm_experiments.models.prompts import target_ids
from llm_experiments.origin import origin
from llm_experiments.scoring.entities import (
    Reader,
    contains,
    entity_kinds,
    extract,
    final_answer,
    guessed_name,
    spoken,
    words,
)
from toytransformer.compositions import Composition, Question, Record, SpecError

__all__ = ["answers", "candidate_logprobs", "extract", "own_answers", "own_task", "records"]

#: Keys that records() puts into a record's regime itself.
OWN_KEYS = ("model", "dataset", "names_seed", "template", "split", "dtype")


@dataclass(frozen=True)
class _Item:
    """A question in the words of one template, and what is expected of the answer."""

    question: Question
    template: int
    text: str
    expected: str | None


def records(
    loaded: LoadedModel,
    composition: Composition,
    lexicon: Lexicon,
    templates: Sequence[int],
    *,
    split: str,
    regime: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    adapters: Sequence[str] | None = None,
    spectral_gap: float | None = None,
    old_answers: Mapping[str, str] | None = None,
    max_new_tokens: int | None = None,
    batch: int = 32,
    score_hops: int | None = 2,
    others: int = 4,
    group: int = 10,
    seed: int = 0,
) -> tuple[Record, ...]:
    """One Record for each question and template, in that order.

    split: what the templates are ("dev", "test"), kept in the regime beside model digest, dataset, seed of
    the names, template and dtype; regime: further scalars (training seed, layers, control, ..).
    adapters: what is really merged where that is not the composition's library (() for the base model).
    old_answers: by prompt ("x3 R1 R2"), the name a base model of unknown world answers; it becomes the
    question's old answer, called x3_base, where the composition has none.
    max_new_tokens: None for half as much again as the longest expected answer of the same form, and 8 more.
    score_hops: direct questions of at least so many hops get log-probabilities of candidate answers, None
    for no question; see _candidates for others, group and seed. batch: rows run at once.

    Of chains the regime says how far they were right: hop1_right, bridge_copied (the second question is about
    the entity the first step gave) and hop2_right, each None where the chain does not say.
    Errors: SpecError on a regime key that is set here; what rendering refuses (entities without a name).
    """
    if clash := sorted(set(OWN_KEYS) & set(regime or {})):
        raise SpecError(f"regime key {clash[0]!r} is set by records(): leave it out, or name yours otherwise")
    fixed = {
        "model": loaded.digest,
        "dataset": lexicon.dataset,
        "names_seed": lexicon.seed,
        "split": split,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        **(regime or {}),
    }
    questions, readers = _with_old(composition, lexicon, old_answers or {})
    items = [_item(question, k, lexicon, composition) for question in questions for k in templates]
    texts = _answer_all(loaded, items, max_new_tokens, batch)
    scores = _score_all(loaded, items, readers, score_hops, others, group, seed, batch)
    source = origin() if provenance is None else provenance
    names = tuple(a.name for a in composition.adapters) if adapters is None else tuple(adapters)

    def record(item: _Item, text: str, logprobs: dict[str, float] | None) -> Record:
        question, reader = item.question, readers[item.question]
        answer = reader.answer(text, question)
        exact, named = _judge(item, text, reader)
        return Record(
            composition=composition.name,
            setting=dict(composition.setting),
            spec_hash=composition.spec_hash,
            source=loaded.id,
            adapters=names,
            rule=composition.merge.rule,
            weights=composition.merge.weights,
            options=composition.merge.option_dict,
            regime={**fixed, "template": item.template, **_steps(question, text, reader)},
            group=question.group,
            prompt=str(question.prompt),
            decode=question.decode,
            correct=question.correct,
            bridge=question.bridge,
            old=question.old,
            answer=answer,
            shares=question.shares({answer: 1.0}),
            spectral_gap=spectral_gap,
            question=item.text,
            text=text,
            exact=exact,
            contains=named,
            logprobs=logprobs,
            provenance=source,
        )

    return tuple(record(*row) for row in zip(items, texts, scores, strict=True))


def own_task(loaded: LoadedModel, examples: Sequence[Example], *, batch: int = 32) -> dict[str, Any]:
    """How many examples the model answers with the right entity, greedily: {"share", "exact", "items"}.

    share: the entity is named, of chains in the final answer. exact: the answer is the expected text. Both
    are None without examples.
    """
    right, exact = [], []
    for form in dict.fromkeys(example.form for example in examples):
        rows = [example for example in examples if example.form == form]
        budget = _budget(loaded, [example.answer for example in rows])
        texts = answers(loaded, [example.question for example in rows], max_new_tokens=budget, batch=batch)
        for example, text in zip(rows, texts, strict=True):
            said = spoken(text) if form == "direct" else final_answer(text)
            right.append(said is not None and contains(said, example.entity))
            exact.append(words(spoken(text)) == words(example.answer))
    count = len(right)
    return {
        "share": sum(right) / count if count else None,
        "exact": sum(exact) / count if count else None,
        "items": count,
    }


def own_answers(base: Iterable[Record], lexicon: Lexicon) -> dict[str, str]:
    """What a base model of unknown world answers, by prompt: for records(old_answers=..) of its merges.

    base: rows of the model without adapters. Direct answers count, the first template that names something
    decides: an entity of the lexicon, else what guessed_name() finds.
    """
    found: dict[str, str] = {}
    for row in base:
        if row.decode != "direct" or row.prompt in found or row.text is None:
            continue
        name = lexicon.names.get(row.answer or "")
        if name is None:
            relation = lexicon.worded(row.prompt.split()[-1:])[0]
            name = guessed_name(row.text, row.question or "", SIGNATURES[relation][1])
        if name:
            found[row.prompt] = name
    return found


# --- asking -------------------------------------------------------------------------------------------------


def _item(question: Question, template: int, lexicon: Lexicon, composition: Composition) -> _Item:
    text, expected = asked(question, lexicon, template), None
    if question.correct in lexicon.names:
        form = "chain" if question.decode == "steps" else "direct"
        expected = render(
            question.prompt, question.correct, lexicon, template, form, composition.world
        ).answer
    return _Item(question, template, text, expected)


def _answer_all(loaded: LoadedModel, items: Sequence[_Item], most: int | None, batch: int) -> list[str]:
    """The texts, direct questions and chains apart: they begin and end differently."""
    texts = [""] * len(items)
    for decode in ("direct", "steps"):
        rows = [row for row, item in enumerate(items) if item.question.decode == decode]
        if rows:
            budget = most or _budget(loaded, [items[row].expected for row in rows])
            asked_texts = [items[row].text for row in rows]
            written = answers(loaded, asked_texts, max_new_tokens=budget, batch=batch)
            for row, text in zip(rows, written, strict=True):
                texts[row] = text
    return texts


def _budget(loaded: LoadedModel, expected: Iterable[str | None], unknown: int = 64) -> int:
    """Half as many tokens again as the longest expected answer, and 8; 64 where nothing is expected."""
    lengths = [len(target_ids(loaded, text)) for text in expected if text is not None]
    return math.ceil(1.5 * max(lengths)) + 8 if lengths else unknown


def _with_old(
    composition: Composition, lexicon: Lexicon, given: Mapping[str, str]
) -> tuple[list[Question], dict[Question, Reader]]:
    """The questions, with the base model's own answers for old ones, and what reads the answers to each.

    Only the question itself knows its base answer: "New York City" must not hide a New York from the others.
    """
    kinds = entity_kinds(composition, lexicon)
    plain = Reader(lexicon, kinds)
    readers = {}
    for question in composition.questions:
        name = given.get(str(question.prompt))
        if name and question.old is None:
            question = replace(question, old=f"{question.prompt.entity}_base")
        named = not name or question.old in lexicon.names
        readers[question] = plain if named else Reader(lexicon, kinds, {question.old: name})
    return list(readers), readers


# --- judging ------------------------------------------------------------------------------------------------


def _judge(item: _Item, text: str, reader: Reader) -> tuple[bool | None, bool | None]:
    """Whether the text is the expected one (of chains: ends in it) and whether it names the right entity."""
    if item.expected is None:
        return None, None
    name, said = reader.names[item.question.correct], spoken(text)
    if item.question.decode == "steps":
        final = final_answer(said)
        return final is not None and words(final) == words(name), contains(said, name)
    return words(said) == words(item.expected), contains(said, name)


def _steps(question: Question, text: str, reader: Reader) -> dict[str, bool | None]:
    if question.decode != "steps" or question.prompt.hops != 2:
        return {}
    said = reader.steps(text, question)
    return {
        "hop1_right": None if said.hop1 is None else said.hop1 == question.bridge,
        "bridge_copied": None if None in (said.hop1, said.asked) else said.asked == said.hop1,
        "hop2_right": None if said.hop2 is None else said.hop2 == question.correct,
    }


# --- log-probabilities --------------------------------------------------------------------------------------


def _score_all(
    loaded: LoadedModel,
    items: Sequence[_Item],
    readers: Mapping[Question, Reader],
    hops: int | None,
    others: int,
    group: int,
    seed: int,
    batch: int,
) -> list[dict[str, float] | None]:
    """log p of every candidate answer of every direct question that is scored, by role and name."""
    scores: list[dict[str, float] | None] = [None] * len(items)
    rows = [
        row
        for row, item in enumerate(items)
        if hops is not None
        and item.expected is not None
        and item.question.decode == "direct"
        and item.question.prompt.hops >= hops
    ]
    partners = _partners(list(dict.fromkeys(items[row].question for row in rows)), group, seed)
    asks = [(items[row], readers[items[row].question]) for row in rows]
    wanted = [_candidates(item.question, reader, partners, others, seed) for item, reader in asks]
    distinct = [list(dict.fromkeys(labelled.values())) for labelled in wanted]
    begun = [_begun(item, reader) for item, reader in asks]
    found = candidate_logprobs(loaded, [items[row].text for row in rows], begun, distinct, batch=batch)
    for row, labelled, names, values in zip(rows, wanted, distinct, found, strict=True):
        by_name = dict(zip(names, values, strict=True))
        scores[row] = {label: round(by_name[name], 4) for label, name in labelled.items()}
    return scores


def _candidates(
    question: Question,
    reader: Reader,
    partners: Mapping[Question, Sequence[str]],
    others: int,
    seed: int,
) -> dict[str, str]:
    """The names scored, by label: "correct:NAME", "bridge:NAME", "old:NAME", "edited:NAME", "shuffled:NAME".

    edited: a seeded sample of `others` trained answers of the kind asked for that play no other role.
    shuffled: the right answers of the other questions of its group (see _partners), the baseline.
    """
    roles = {role: getattr(question, role) for role in ("correct", "bridge", "old")}
    named = {role: reader.names[token] for role, token in roles.items() if token in reader.names}
    kind = reader.kinds.get(question.correct)
    pool = [reader.names[t] for t in sorted(question.edited) if t in reader.names and reader.kinds[t] == kind]
    pool = [name for name in dict.fromkeys(pool) if name not in named.values()]
    sample = random.Random(f"{seed} {question.prompt}").sample(pool, min(others, len(pool)))
    labelled = {f"{role}:{name}": name for role, name in named.items()}
    labelled |= {f"edited:{name}": name for name in sample}
    shuffled = (reader.names[token] for token in partners[question])
    return labelled | {f"shuffled:{name}": name for name in shuffled if name != named["correct"]}


def _partners(questions: Sequence[Question], size: int, seed: int) -> dict[Question, list[str]]:
    """The right answers of each question's group: questions on the same relations, drawn into equal parts.

    Groups of about `size` make a permutation test within them exact at a cost of `size` candidates for each
    question; they are the same for every template, rule and training seed.
    """
    partners: dict[Question, list[str]] = {}
    for relations in dict.fromkeys(question.prompt.relations for question in questions):
        rows = [question for question in questions if question.prompt.relations == relations]
        random.Random(f"{seed} {' '.join(relations)}").shuffle(rows)
        parts = math.ceil(len(rows) / size)
        for part in range(parts):
            members = rows[part::parts]
            for question in members:
                partners[question] = [other.correct for other in members if other is not question]
    return partners


def _begun(item: _Item, reader: Reader) -> str:
    """The template's answer up to the entity."""
    prompt = item.question.prompt
    answer = paraphrase(reader.lexicon.worded(prompt.relations), item.template).answer
    return answer.partition("{y}")[0].replace("{x}", reader.names[prompt.entity])
