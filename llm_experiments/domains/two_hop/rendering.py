"""Facts and questions as English: one paraphrase each, plain or with the steps written out (Table 6)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from llm_experiments.domains.two_hop.lexicon import Lexicon
from llm_experiments.domains.two_hop.templates import template as paraphrase
from results.rows import Item
from toytransformer.compositions import Adapter, Composition, Fact, Prompt, Question, SpecError, World
from toytransformer.compositions.spec import hops

Form = Literal["direct", "chain"]
FORMS: tuple[Form, ...] = ("direct", "chain")
STEP_BY_STEP = "Answer the following question step-by-step: "
FIRST = "First, we need to answer the question: "
SECOND = "Second, we need to answer the question: "
THEREFORE = "Therefore, the answer is "


@dataclass(frozen=True)
class Example:
    """A question and its answer in English.

    entity: name of the answer entity, which the answer contains. fact: what is taught, in abstract tokens.
    template: number of the paraphrase. form: "chain" with the steps written out. facts: of a chain, from and
    to which character of the answer each step's own answer is named first. silent: spans of the answer that
    are read but not taught.
    """

    question: str
    answer: str
    entity: str
    fact: Fact
    template: int
    form: Form = "direct"
    facts: tuple[tuple[int, int], ...] = ()
    silent: tuple[tuple[int, int], ...] = ()


def render(
    fact_or_prompt: Fact | Prompt,
    answer: str | None,
    lexicon: Lexicon,
    template: int,
    form: Form = "direct",
    world: World | None = None,
) -> Example:
    """One example: paraphrase `template` of a fact, or of a prompt with this answer (abstract token).

    answer: None for the fact's own. world: gives the first step of a chain, else unused.
    A chain asks Table 6's question and answers it by hop 1, hop 2 and the final answer, all in paraphrase
    `template`.
    Errors: SpecError on a form or fact that does not go together, LexiconError on an entity without a name,
    TemplateError when there are no such templates.
    """
    if isinstance(fact_or_prompt, Fact):
        fact = fact_or_prompt if answer is None else Fact(fact_or_prompt.prompt, answer)
    elif answer is None:
        raise SpecError(f"'{fact_or_prompt}' has no answer: give one, or a Fact")
    else:
        fact = Fact(fact_or_prompt, answer)
    if form not in FORMS:
        raise SpecError(f"form {form!r} is unknown: use one of {', '.join(FORMS)}")
    x, y = lexicon.name(fact.prompt.entity), lexicon.name(fact.answer)
    words = lexicon.worded(fact.prompt.relations)
    composed = paraphrase(words, template)
    if form == "direct":
        return Example(composed.ask(x), composed.tell(x, y), y, fact, template)
    middle = lexicon.name(_first_step(fact, world))
    hop1, hop2 = (paraphrase((word,), template) for word in words)
    steps = (
        FIRST + hop1.ask(x),
        hop1.tell(x, middle),
        SECOND + hop2.ask(middle),
        hop2.tell(middle, y),
        f"{THEREFORE}{y}.",
    )
    begins = list(accumulate((len(step) + 1 for step in steps), initial=0))
    facts = tuple(
        (begins[place] + start, begins[place] + stop)
        for place, (start, stop) in ((1, hop1.named(x, middle)), (3, hop2.named(middle, y)))
    )
    return Example(STEP_BY_STEP + composed.ask(x), " ".join(steps), y, fact, template, "chain", facts)


def _first_step(fact: Fact, world: World | None) -> str:
    """The answer of a two-hop fact's first hop."""
    if fact.prompt.hops != 2:
        raise SpecError(f"'{fact}' has {fact.prompt.hops} hops: only two hops have a chain of steps")
    if world is None:
        raise SpecError(f"the steps of '{fact}' follow a world's facts: give the world")
    if (middle := world.truth(Prompt(fact.prompt.entity, fact.prompt.relations[:1]))) is None:
        raise SpecError(f"the world does not say what the first step of '{fact}' is: add that fact to it")
    return middle


def training_examples(
    adapter: Adapter,
    world: World,
    lexicon: Lexicon,
    templates: Sequence[int],
    form_alone: bool = False,
) -> tuple[Example, ...]:
    """All an adapter is trained on: its facts, then its chains, each in every one of `templates`.

    form_alone: of a chain its words are taught, and to copy the first step's answer into the second question
    and the second's into the end, but not the two answers where they are named first.
    """
    direct = (render(fact, None, lexicon, k, "direct", world) for fact in adapter.facts for k in templates)
    chains = (render(fact, None, lexicon, k, "chain", world) for fact in adapter.chains for k in templates)
    if form_alone:
        chains = (replace(chain, silent=chain.facts) for chain in chains)
    return (*direct, *chains)


def question_text(question: Question | Prompt, lexicon: Lexicon, template: int) -> str:
    """The English question in one paraphrase; where it is decoded in steps, the chain form's question."""
    prompt = question.prompt if isinstance(question, Question) else question
    text = paraphrase(lexicon.worded(prompt.relations), template).ask(lexicon.name(prompt.entity))
    steps = isinstance(question, Question) and question.decode == "steps"
    return STEP_BY_STEP + text if steps else text


def in_context(item: Item, composition: Composition, lexicon: Lexicon) -> Item:
    """The item with both facts of its chain in front, worded as it is: what is answered can be copied.

    Its extras say so: "context" is "facts". Errors: SpecError where no chain of the composition has its fact.
    """
    entity, *_ = str(item.extra["prompt"]).split()
    template = item.extra["template"]
    assert isinstance(template, int)
    prompts = dict.fromkeys(q.prompt for q in composition.questions if q.prompt.hops == 2)
    for facts in (hops(composition.world, prompt) for prompt in prompts):
        if entity in [fact.prompt.entity for fact in facts]:
            told = "".join(render(fact, None, lexicon, template).answer + " " for fact in facts)
            return replace(item, question=told + item.question, extra={**item.extra, "context": "facts"})
    raise SpecError(f"no chain of '{composition.name}' is about '{entity}': ask about chains")
