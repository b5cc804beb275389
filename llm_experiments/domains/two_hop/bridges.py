"""What about a bridge costs an adapter its own hop: its names, the facts it stores, or the form it teaches?

    bridge-names    the bridge's names of the tested ones' kind, real, against invented ones
    bridge-form     the bridge's chains without their facts: their words, and the copy from step to step

Both leave everything else as it is, initial factors, order of the data and number of steps included. Each
adapter is asked alone as well, at the weights that `mean` and `sum` give it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from llm_experiments.domains.two_hop.scenes import PAIR, Scene, TwoHop
from llm_experiments.domains.two_hop.tiers import RULES, direct
from llm_experiments.engine.steps import Step
from llm_experiments.experiments.registry import experiment
from toytransformer.compositions import Merge

#: Weights of an adapter alone.
ALONE = (0.5, 1.0)

two_hop = partial(experiment, needs=("two-hop",), study=TwoHop)


@two_hop(
    "bridge-names",
    about="setups 2 and 6 with a bridge of real names, as the tested ones, and of invented ones",
    source="theory.md, section 9",
)
def bridge_names(study: TwoHop) -> Iterator[Step]:
    for seed in study.seeds:
        for number in (2, 6):
            for bridge in ("R", None):
                variant: dict[str, Any] = {} if bridge is None else {"bridge_names": "real"}
                scenes = {names: study.setup(number, "R", names, bridge=bridge) for names in (PAIR, *_SINGLE)}
                yield from _asked(study, scenes, seed, variant)


@two_hop(
    "bridge-form",
    about="setup 6 with the form of its chains alone: no loss on the answers of their steps",
    source="theory.md, section 9",
)
def bridge_form(study: TwoHop) -> Iterator[Step]:
    """Beside it setup 6 as it is, and setup 0, which teaches no form."""
    for seed in study.seeds:
        for number, form in ((6, True), (6, False), (0, False)):
            variant: dict[str, Any] = {"taught": "form"} if form else {}
            scenes = {names: study.setup(number, "R", names, form_alone=form) for names in (PAIR, *_SINGLE)}
            yield from _asked(study, scenes, seed, variant)


_SINGLE = tuple((name,) for name in PAIR)


def _asked(
    study: TwoHop, scenes: dict[tuple[str, ...], Scene], seed: int, variant: dict[str, Any]
) -> Iterator[Step]:
    """A pair under every rule, then each of its adapters alone at every weight, on its own hop."""
    library = study.library(scenes[PAIR], seed, layers="mlp")
    for rule in RULES:
        yield study.answers(library, rule, seed, **variant)
    for names in _SINGLE:
        alone = study.alone(library, direct(study, scenes[names]))
        for weight in ALONE:
            yield study.answers(alone, Merge("sum", (weight,)), seed, control=names[0], **variant)
