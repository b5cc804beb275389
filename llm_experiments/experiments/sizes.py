"""How large a measurement is: facts, templates and the training recipe, by name."""

from __future__ import annotations

from dataclasses import dataclass

from llm_experiments.adapters.recipe import Training
from llm_experiments.domains.two_hop.templates import DEV, TEST, TRAIN


@dataclass(frozen=True)
class Profile:
    """The size of a measurement.

    facts, bridge_facts: chains tested, chains of the bridge. library_facts: chains of each graph of Table 12.
    train, dev, test: numbers of the templates of each split. dev_facts: chains on which Arrow's temperature
    is chosen, in dev templates. temperatures: the sweep it is chosen from. fit_facts, fit_templates: how many
    extra chains, in how many templates, rules that need data are fitted on. relabellings: random draws beside
    the identity. edited_facts: chains edited in closed form. items: seed of names and pairings, apart from
    the training seeds.
    """

    name: str
    about: str
    facts: int
    bridge_facts: int
    library_facts: int
    train: tuple[int, ...]
    dev: tuple[int, ...]
    test: tuple[int, ...]
    dev_facts: int
    temperatures: tuple[float, ...]
    fit_facts: int
    fit_templates: int
    relabellings: int
    edited_facts: int
    training: Training
    items: int = 0


TEMPERATURES = (10.0, 1.0, 0.3, 0.1, 0.03, 0.01)

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="embedded",
            about="the embedded model on a CPU: 20 triplets, 46/2/2 paraphrases, 400 steps each",
            facts=20,
            bridge_facts=20,
            library_facts=10,
            train=tuple(TRAIN),
            dev=DEV,
            test=TEST,
            dev_facts=20,
            temperatures=TEMPERATURES,
            fit_facts=8,
            fit_templates=12,
            relabellings=2,
            edited_facts=20,
            training=Training(learning_rate=4e-3, steps=400),
        ),
        Profile(
            name="paper",
            about="the paper's size and recipe: 100 triplets, 46/2/2 templates, Table 11",
            facts=100,
            bridge_facts=100,
            library_facts=100,
            train=tuple(TRAIN),
            dev=DEV,
            test=TEST,
            dev_facts=50,
            temperatures=TEMPERATURES,
            fit_facts=20,
            fit_templates=5,
            relabellings=4,
            edited_facts=40,
            training=Training(),
        ),
        Profile(
            name="small",
            about="a 100M-parameter model on a CPU: 24 triplets, 8 training templates, 160 steps each",
            facts=24,
            bridge_facts=24,
            library_facts=8,
            train=tuple(TRAIN[:8]),
            dev=DEV,
            test=TEST,
            dev_facts=8,
            temperatures=(1.0, 0.1, 0.01),
            fit_facts=8,
            fit_templates=8,
            relabellings=2,
            edited_facts=24,
            training=Training(learning_rate=1e-3, steps=160, base_dtype="bfloat16"),
        ),
    )
}
