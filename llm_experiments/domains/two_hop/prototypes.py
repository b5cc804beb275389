"""Does Arrow recognise an adapter's own kind of question? Its prototypes against mean features.

For facts with different answers the first right-singular vector of an adapter is orthogonal to what its
prompts have in common, so that a person it was not taught sees nothing of it (theory.md, section 8). A
prototype that is the mean feature of its prompts does. Each library is routed by both, each at a temperature
of its own, and asked

    its own questions       as everywhere: hops, chains in steps and directly
    strangers' questions    the same hops of people and places that neither adapter was taught

Row.gates says how the adapters were weighted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llm_experiments.domains.task import Task, keep_items, read_items
from llm_experiments.domains.two_hop.scenes import Library, TwoHop
from llm_experiments.domains.two_hop.tiers import direct
from llm_experiments.engine.steps import Step
from llm_experiments.experiments.registry import experiment
from results.rows import Item, Scalar
from toytransformer.compositions import Merge

#: A draw of names so far from those that are measured that no cell has it.
STRANGE_NAMES = 2_000_003
SETUPS = (0, 2)
ROUTED = (Merge("arrow-products"), Merge("arrow-products", options={"prototypes": "mean-features"}))


@experiment(
    "prototypes",
    about="Arrow by singular vectors and by mean features, on own questions and on strangers'",
    source="theory.md, section 8",
    needs=("two-hop",),
    study=TwoHop,
)
def prototypes(study: TwoHop) -> Iterator[Step]:
    for seed in study.seeds:
        for number in SETUPS:
            library = study.library(study.setup(number, "R"), seed, layers="mlp")
            strange = strangers(study, library)
            base = study.ask_base(strange)
            about: dict[str, Scalar] = {
                "asked": "strangers",
                "library": f"setup-{number}",
                "library_names": study.names,
            }
            yield base
            yield study.answers(library, "mean", seed)
            for merge in ROUTED:
                own = study.answers(library, merge, seed)
                yield own
                yield study.ask(
                    strange,
                    library.adapters,
                    merge,
                    base=base.address,
                    seed=seed,
                    layers="mlp",
                    variant=about,
                    sweep=own.sweep,
                )


def strangers(study: TwoHop, library: Library) -> Task:
    """Both hops of another draw of names, without those of the library's own that are drawn again."""
    own = set(library.scene.words.names.values())
    other = replace(study, names=STRANGE_NAMES)
    scene = direct(other, other.setup(0, "R"))
    items = [
        item
        for item in read_items(study.plan, scene.task.items)
        if item.group in ("hop1", "hop2") and scene.words.name(_asked(item)) not in own
    ]
    return replace(scene.task, items=keep_items(study.plan, items))


def _asked(item: Item) -> str:
    """The entity that an item asks about."""
    return str(item.extra["prompt"]).split()[0]
