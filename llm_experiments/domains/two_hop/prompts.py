"""A composition's prompts in words, each up to where a model decides on the name that answers it.

Asked at once that is the answer's sentence up to the name; as a step of a chain of thought it is the chain up
to the name that ends the step, its earlier steps answered rightly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_experiments.domains.two_hop.lexicon import Lexicon
from llm_experiments.domains.two_hop.rendering import FIRST, SECOND, STEP_BY_STEP
from llm_experiments.domains.two_hop.templates import template as paraphrase
from toytransformer.compositions import Composition, Prompt
from toytransformer.compositions.spec import hops
from toytransformer.model_features import Row


@dataclass(frozen=True)
class Begun:
    """A question and its answer as far as it is decided before the name. row: which one it is."""

    row: Row
    question: str
    begun: str


def stored(composition: Composition) -> list[Prompt]:
    """The prompts that some adapter is trained on, chains as their one-hop facts."""
    facts = (fact for adapter in composition.adapters for fact in adapter.stored(composition.world))
    return list(dict.fromkeys(fact.prompt for fact in facts))


def direct(composition: Composition) -> list[Prompt]:
    """The prompts of the questions that are asked at once."""
    return list(dict.fromkeys(q.prompt for q in composition.questions if q.decode == "direct"))


def asked_at_once(prompt: Prompt, words: Lexicon, wording: int, form: str = "direct") -> Begun:
    """The prompt as a question of its own. form: "direct", or "stored" where it is one of an adapter's."""
    template = paraphrase(words.worded(prompt.relations), wording)
    x = words.name(prompt.entity)
    return Begun((str(prompt), form, wording), template.ask(x), _before(template.answer, x))


def steps(composition: Composition, words: Lexicon, wording: int) -> Iterator[Begun]:
    """Both steps of every two-hop question that is asked step by step."""
    for question in composition.questions:
        if question.decode == "steps" and question.prompt.hops == 2:
            first, second = hops(composition.world, question.prompt)
            x, y = (words.name(fact.prompt.entity) for fact in (first, second))
            one, two = (paraphrase(words.worded(fact.prompt.relations), wording) for fact in (first, second))
            text = STEP_BY_STEP + paraphrase(words.worded(question.prompt.relations), wording).ask(x)
            lead = f"{FIRST}{one.ask(x)} "
            yield Begun((str(first.prompt), "steps", wording), text, lead + _before(one.answer, x))
            lead += f"{one.tell(x, y)} {SECOND}{two.ask(y)} "
            yield Begun((str(second.prompt), "steps", wording), text, lead + _before(two.answer, y))


def told(composition: Composition, words: Lexicon, wording: int) -> Iterator[tuple[str, str, str]]:
    """Every two-hop question with its facts in front: how it is asked, the text, the name that is right."""
    for question in composition.questions:
        if question.prompt.hops == 2:
            facts = hops(composition.world, question.prompt)
            sentences = " ".join(
                paraphrase(words.worded(fact.prompt.relations), wording).tell(
                    words.name(fact.prompt.entity), words.name(fact.answer)
                )
                for fact in facts
            )
            text = paraphrase(words.worded(question.prompt.relations), wording).ask(
                words.name(question.prompt.entity)
            )
            form = STEP_BY_STEP if question.decode == "steps" else ""
            yield question.decode, f"{sentences} {form}{text}", words.name(facts[-1].answer)


def _before(answer: str, x: str) -> str:
    """An answer sentence up to the name that it gives; x: the name that it is about."""
    return answer.partition("{y}")[0].replace("{x}", x)
