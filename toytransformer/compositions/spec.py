"""A Composition, written once as data: which adapters are merged how, and which prompts are then asked.

The toy model predicts it and a language model measures it; both answer with the same five outcomes.
"""

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal

from toytransformer.compositions.worlds import (
    Fact,
    Prompt,
    SpecError,
    World,
    check_name,
    check_tuple,
    repeated,
)

OUTCOMES = ("correct", "bridge", "old", "edited", "other")
"""What an answer is, by precedence: right, the first hop's, the base model's, a trained fact's, or none."""

DECODES = ("direct", "steps")
GAUGES = ("svd", "facts", "flipped", "random:<seed>")

MOST = 2**63 - 1
"""Largest whole number that counts or numbers something."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Adapter:
    """One LoRA: a name and the facts it is trained on.

    rank: number of columns of its factors, None for as many as the facts need.
    gauge: which factors (A R, B R^-T) of the one Delta W are kept, one of GAUGES.
    approximate: whether a rank too small for the facts is allowed.
    chains: facts of several hops that it is shown with their steps written out (chain of thought). To the toy
    model, where a written answer is a token and a step a prompt of its own, they are their one-hop facts.
    Errors: SpecError on no facts, two facts on one prompt, rank < 1, an unknown gauge, a chain of one hop.
    """

    name: str
    facts: tuple[Fact, ...]
    rank: int | None = None
    gauge: str = "svd"
    approximate: bool = False
    chains: tuple[Fact, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name, "adapter")
        for what in ("facts", "chains"):
            check_tuple(getattr(self, what), Fact, f"{what} of adapter {self.name!r}")
            if twice := repeated(fact.prompt for fact in getattr(self, what)):
                raise SpecError(
                    f"adapter {self.name!r} is trained on '{twice[0]}' twice: keep one fact for each prompt"
                )
        if short := [fact for fact in self.chains if fact.prompt.hops < 2]:
            raise SpecError(
                f"chain '{short[0]}' of adapter {self.name!r} has one hop: list it among the facts"
            )
        if not self.facts and not self.chains:
            raise SpecError(f"adapter {self.name!r} has no facts: give it at least one, or leave it out")
        if self.rank is not None:
            object.__setattr__(self, "rank", check_count(self.rank, f"rank of adapter {self.name!r}"))
        if self.gauge not in GAUGES[:3] and not re.fullmatch(r"random:[0-9]+", str(self.gauge)):
            raise SpecError(
                f"gauge {self.gauge!r} of adapter {self.name!r} is unknown: use one of {', '.join(GAUGES)}"
            )
        if not isinstance(self.approximate, bool):
            raise SpecError(f"approximate={self.approximate!r} of adapter {self.name!r}: use True or False")

    def stored(self, world: World) -> tuple[Fact, ...]:
        """What it is to hold: its facts, then the one-hop facts that its chains go through, each once."""
        steps = (hop for chain in self.chains for hop in hops(world, chain.prompt))
        return tuple(dict.fromkeys((*self.facts, *steps)))

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of its facts, in order."""
        return tuple(fact.prompt for fact in self.facts)


def hops(world: World, prompt: Prompt) -> tuple[Fact, ...]:
    """The one-hop facts, edits included, that answer a prompt step by step.

    Errors: SpecError on a step without an answer.
    """
    steps, entity = [], prompt.entity
    for relation in prompt.relations:
        step = Prompt(entity, (relation,))
        if (answer := world.truth(step)) is None:
            raise SpecError(f"'{step}', a step of '{prompt}', has no answer in the world: add the fact")
        steps.append(Fact(step, answer))
        entity = answer
    return tuple(steps)


def true_fact(world: World, prompt: Prompt) -> Fact:
    """The prompt with its right answer. Errors: SpecError where it has none."""
    if (answer := world.truth(prompt)) is None:
        raise SpecError(f"'{prompt}' has no answer in the world: add its facts")
    return Fact(prompt, answer)


def check_count(value: object, what: str, least: int = 1) -> int:
    """The whole number as an int, also one of NumPy's; SpecError for less than `least`, True or 2.0."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= MOST:
        raise SpecError(f"{what} is {shortened(value)}: use an int >= {least} (and below 2^63)")
    return int(value)


def shortened(value: object, most: int = 60) -> str:
    """The value as it is written in Python, cut to a length that fits a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of 5,000 digits, a list in a list in a list ..
        return f"a very long {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}.."


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not _is_finite(value):
        raise SpecError(f"{what} is {shortened(value)}: use a finite number")
    return float(value) + 0.0  # -0.0 becomes 0.0, so that equal weights have one hash


def _is_finite(value: Any) -> bool:
    """Whether a real number is one that a float can hold; also asked of whole numbers, of any length."""
    return bool(abs(value) <= sys.float_info.max)


def _sorted_pairs(given: object, what: str, owner: str) -> tuple[tuple[str, Scalar], ...]:
    """A mapping, or pairs, of names and finite scalars as pairs sorted by name."""
    pairs: Any = tuple(given.items()) if isinstance(given, Mapping) else given
    check_tuple(pairs, tuple, f"{what}s of {owner!r}")
    for pair in pairs:
        if len(pair) != 2:
            raise SpecError(f"{pair!r} among the {what}s of {owner!r} is no pair: give (name, value)")
        check_name(pair[0], f"{what} of {owner!r}")
    plain = [(name, _scalar(value, f"{what} {name}", owner)) for name, value in pairs]
    if twice := repeated(name for name, _ in plain):
        raise SpecError(f"{what} {twice[0]!r} of {owner!r} is given twice: keep one value")
    return tuple(sorted(plain, key=lambda pair: pair[0]))


def _scalar(value: object, what: str, owner: str) -> Scalar:
    """Text, a finite number (NumPy's as Python's), a bool or None."""
    if isinstance(value, str | bool | None):
        return value
    if isinstance(value, Integral) and _is_finite(value):
        return int(value)
    if isinstance(value, Real) and _is_finite(value):
        return float(value)
    raise SpecError(f"{what}={shortened(value)} of {owner!r}: use text, a finite number, a bool or None")


@dataclass(frozen=True)
class Merge:
    """A merge rule by name, its weights (None for the rule's own) and its options.

    options: a mapping from names to scalars, kept as sorted pairs so that two orders are one spec.
    Errors: SpecError on weights or options that are not finite. The registry of merge rules checks the names.
    """

    rule: str = "sum"
    weights: tuple[float, ...] | None = None
    options: Mapping[str, Scalar] | tuple[tuple[str, Scalar], ...] = ()

    def __post_init__(self) -> None:
        check_name(self.rule, "merge rule")
        if self.weights is not None:
            check_tuple(self.weights, Real, f"weights of {self.rule!r}")
            weights = tuple(_number(weight, f"a weight of {self.rule!r}") for weight in self.weights)
            object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "options", _sorted_pairs(self.options, "option", self.rule))

    @property
    def option_dict(self) -> dict[str, Scalar]:
        """The options by name."""
        return dict(self.options)


@dataclass(frozen=True)
class Question:
    """A prompt put to the merged model, and the roles of the answers it may give.

    correct: the right answer, None when nothing is right.
    bridge: the right answer to the first hop alone, None when there is only one.
    old: the base model's answer, None when it knows none.
    edited: the answers the adapters were trained on.
    group: which average the question belongs to.
    decode: "direct", or "steps" to answer the first hop and feed the answer back as a token.
    """

    prompt: Prompt
    correct: str | None
    bridge: str | None = None
    old: str | None = None
    edited: frozenset[str] = frozenset()
    group: str = "two-hop"
    decode: Literal["direct", "steps"] = "direct"

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, Prompt):
            raise SpecError(f"{self.prompt!r} is not a Prompt: write Question(Prompt(entity, relations), ..)")
        for role in ("correct", "bridge", "old"):
            if (name := getattr(self, role)) is not None:
                check_name(name, f"{role} answer to '{self.prompt}'")
        if isinstance(self.edited, str) or not isinstance(self.edited, Iterable):
            raise SpecError(f"edited={self.edited!r} at '{self.prompt}': give a set of answers")
        object.__setattr__(self, "edited", frozenset(self.edited))
        check_name(self.group, "group")
        if self.decode not in DECODES:
            raise SpecError(
                f"decode {self.decode!r} of '{self.prompt}' is unknown: use one of {', '.join(DECODES)}"
            )

    def outcome(self, answer: str | None) -> str:
        """Which of OUTCOMES an answer is: the first that fits when labels coincide; None is "other"."""
        if answer is not None:
            for role in ("correct", "bridge", "old"):
                if answer == getattr(self, role):
                    return role
        return "edited" if answer in self.edited else "other"

    def shares(self, answers: Mapping[str | None, float]) -> dict[str, float]:
        """Share of each of OUTCOMES, given the probability of each answer (tied answers have equal ones)."""
        parts: dict[str, list[float]] = {outcome: [] for outcome in OUTCOMES}
        for answer, probability in answers.items():
            parts[self.outcome(answer)].append(probability)
        return {outcome: math.fsum(part) for outcome, part in parts.items()}


def trained_answers(adapters: Iterable[Adapter]) -> frozenset[str]:
    """Every answer that some adapter was trained to give."""
    return frozenset(fact.answer for adapter in adapters for fact in (*adapter.facts, *adapter.chains))


def question(
    world: World,
    prompt: Prompt,
    adapters: Iterable[Adapter] = (),
    group: str = "two-hop",
    decode: Literal["direct", "steps"] = "direct",
) -> Question:
    """The question with its roles read off the world; a Composition fills in `edited` itself."""
    bridge = world.truth(Prompt(prompt.entity, prompt.relations[:1])) if prompt.hops > 1 else None
    old = world.old(prompt) if decode == "direct" else world.entailed(prompt)
    return Question(prompt, world.truth(prompt), bridge, old, trained_answers(adapters), group, decode)


@dataclass(frozen=True)
class Composition:
    """A world, the adapters trained in it, the rule that merges them and the questions asked of the result.

    examples: target-task facts shown only to rules that need data, none of them asked.
    setting: what the name leaves open (number of facts, known or fresh, ..); records carry it.
    The questions' `edited` is always the answers of these adapters, whatever was given.
    Errors: SpecError on no adapters, no questions, two adapters of one name, a question asked twice or found
    among the examples, a number of weights that is not the number of adapters, or a token outside the world.
    """

    name: str
    world: World
    adapters: tuple[Adapter, ...]
    merge: Merge
    questions: tuple[Question, ...]
    examples: tuple[Fact, ...] = ()
    setting: Mapping[str, Scalar] | tuple[tuple[str, Scalar], ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name, "composition")
        object.__setattr__(self, "setting", _sorted_pairs(self.setting, "setting", self.name))
        for what, kind in (("world", World), ("merge", Merge)):
            if not isinstance(value := getattr(self, what), kind):
                raise SpecError(f"{what} of {self.name!r} is {value!r}: give a {kind.__name__}")
        check_tuple(self.adapters, Adapter, "adapters")
        check_tuple(self.questions, Question, "questions")
        check_tuple(self.examples, Fact, "examples")
        for what in ("adapters", "questions"):
            if not getattr(self, what):
                raise SpecError(f"{self.name!r} has no {what}: give at least one")
        self._check_tokens()
        self._check_counts()
        edited = trained_answers(self.adapters)
        asked = tuple(q if q.edited == edited else replace(q, edited=edited) for q in self.questions)
        object.__setattr__(self, "questions", asked)

    def _check_tokens(self) -> None:
        trained = (fact for adapter in self.adapters for fact in (*adapter.facts, *adapter.chains))
        for fact in (*trained, *self.examples):
            self.world.check_tokens(fact.prompt, fact.answer)
        for chain in (fact for adapter in self.adapters for fact in adapter.chains):
            if (last := hops(self.world, chain.prompt)[-1].answer) != chain.answer:
                raise SpecError(f"chain '{chain}' ends at {last!r} in the world: give that answer")
        for asked in self.questions:
            self.world.check_tokens(asked.prompt, asked.correct, asked.bridge, asked.old)

    def _check_counts(self) -> None:
        weights = self.merge.weights
        if weights is not None and len(weights) != len(self.adapters):
            raise SpecError(
                f"{len(weights)} weights for {len(self.adapters)} adapters: give one for each, or None"
            )
        if twice := repeated(adapter.name for adapter in self.adapters):
            raise SpecError(f"two adapters are called {twice[0]!r}: give each its own name")
        if twice := repeated((asked.prompt, asked.decode) for asked in self.questions):
            raise SpecError(f"'{twice[0][0]}' is asked twice ({twice[0][1]}): ask it once")
        if twice := repeated(fact.prompt for fact in self.examples):
            raise SpecError(f"'{twice[0]}' is an example twice: keep one")
        shown = {fact.prompt for fact in self.examples}
        if leaked := [asked.prompt for asked in self.questions if asked.prompt in shown]:
            raise SpecError(f"'{leaked[0]}' is both a question and an example: keep the two disjoint")

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """Every prompt once: training prompts adapter by adapter, then the examples', then the questions'."""
        trained = (fact.prompt for adapter in self.adapters for fact in adapter.stored(self.world))
        shown = (fact.prompt for fact in self.examples)
        return tuple(dict.fromkeys((*trained, *shown, *(asked.prompt for asked in self.questions))))

    def with_world(self, world: World) -> "Composition":
        """The same composition in another world, from which the roles of answers are read anew."""
        asked = [question(world, q.prompt, self.adapters, q.group, q.decode) for q in self.questions]
        return replace(self, world=world, questions=tuple(asked))

    def with_merge(self, merge: Merge) -> "Composition":
        """The same composition under another merge."""
        return replace(self, merge=merge)

    @cached_property
    def spec_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of to_json(): equal on every machine and in every process."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Canonical JSON, a fact being the list of its tokens and its answer; from_json is its inverse."""
        asked = [
            {name: getattr(q, name) for name in ("correct", "bridge", "old", "group", "decode")}
            | {"prompt": q.prompt.tokens}
            for q in self.questions
        ]
        trained = [
            {name: getattr(a, name) for name in ("name", "rank", "gauge", "approximate")}
            | {"facts": _pack(a.facts)}
            | ({"chains": _pack(a.chains)} if a.chains else {})
            for a in self.adapters
        ]
        world = {
            "entities": self.world.entities,
            "relations": self.world.relations,
            "base": _pack(self.world.base),
            "edits": _pack(self.world.edits),
        }
        if self.world.multi_hop is not None:
            world["multi_hop"] = _pack(self.world.multi_hop)
        merge = {"rule": self.merge.rule, "weights": self.merge.weights, "options": self.merge.option_dict}
        spec = {
            "name": self.name,
            "world": world,
            "adapters": trained,
            "merge": merge,
            "questions": asked,
            "examples": _pack(self.examples),
            "setting": dict(self.setting),
        }
        return json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Composition":
        """The composition that to_json() wrote. Errors: SpecError on anything else."""
        try:
            spec = json.loads(text)
            world, merge = spec.pop("world"), spec.pop("merge")
            for fact_list in ("base", "edits", "multi_hop"):
                if fact_list in world:
                    world[fact_list] = _unpack(world[fact_list])
            names = {key: tuple(world.pop(key)) for key in ("entities", "relations")}
            weights = merge.pop("weights")
            return cls(
                world=World(**world, **names),
                merge=Merge(**merge, weights=None if weights is None else tuple(weights)),
                adapters=tuple(
                    Adapter(facts=_unpack(a.pop("facts")), chains=_unpack(a.pop("chains", ())), **a)
                    for a in spec.pop("adapters")
                ),
                questions=tuple(
                    Question(prompt=_prompt(q.pop("prompt")), **q) for q in spec.pop("questions")
                ),
                examples=_unpack(spec.pop("examples")),
                **spec,
            )
        except SpecError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise SpecError(
                f"not the JSON of a composition ({error}): write it with Composition.to_json()"
            ) from error


def _prompt(tokens: Sequence[str]) -> Prompt:
    return Prompt(tokens[0], tuple(tokens[1:]))


def _pack(facts: Iterable[Fact]) -> list[tuple[str, ...]]:
    return [(*fact.prompt.tokens, fact.answer) for fact in facts]


def _unpack(rows: Iterable[Sequence[str]]) -> tuple[Fact, ...]:
    return tuple(Fact(_prompt(row[:-1]), row[-1]) for row in rows)
