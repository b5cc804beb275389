"""How large a measurement of this domain is, by the profile's name."""

from dataclasses import dataclass, replace

from llm_experiments.domains.two_hop.templates import DEV, TEST, TRAIN


@dataclass(frozen=True)
class Size:
    """Chains and wordings.

    facts, bridge_facts: chains tested, chains of the bridge. library_facts: chains of each graph of Table 12.
    train, dev, test: numbers of the templates of each split. dev_facts: chains on whose single hops Arrow's
    temperature is chosen, in dev templates. fit_facts, fit_templates: how many extra chains, in how many
    templates, rules that need data are fitted on. relabellings: random draws beside the identity.
    edited_facts: chains edited in closed form. conflict_steps: the profile's steps, as a share, of an adapter
    that may agree or conflict with others, taught half of the facts; conflict_asked: numbers of the templates
    that its merges are asked in.
    """

    facts: int
    bridge_facts: int
    library_facts: int
    train: tuple[int, ...]
    dev: tuple[int, ...]
    test: tuple[int, ...]
    dev_facts: int
    fit_facts: int
    fit_templates: int
    relabellings: int
    edited_facts: int
    conflict_steps: float = 0.25
    conflict_asked: tuple[int, ...] = TEST
    pool_worlds: int = 20
    pool_steps: float = 0.5
    pool_examples: tuple[int, ...] = (8, 32, 128)
    pool_counts: tuple[int, ...] = (5, 20)


SIZES: dict[str, Size] = {
    "embedded": Size(
        facts=20,
        bridge_facts=20,
        library_facts=10,
        train=tuple(TRAIN),
        dev=DEV,
        test=TEST,
        dev_facts=20,
        fit_facts=8,
        fit_templates=12,
        relabellings=2,
        edited_facts=20,
    ),
    "paper": Size(
        facts=100,
        bridge_facts=100,
        library_facts=100,
        train=tuple(TRAIN),
        dev=DEV,
        test=TEST,
        dev_facts=50,
        fit_facts=20,
        fit_templates=5,
        relabellings=4,
        edited_facts=40,
    ),
    "small": Size(
        facts=24,
        bridge_facts=24,
        library_facts=8,
        train=tuple(TRAIN[:8]),
        dev=DEV,
        test=TEST,
        dev_facts=8,
        fit_facts=8,
        fit_templates=8,
        relabellings=2,
        edited_facts=24,
        conflict_steps=0.5,
        conflict_asked=tuple(TRAIN[:2]),
        pool_worlds=5,
        pool_examples=(32,),
        pool_counts=(5,),
    ),
}
SIZES["brief"] = replace(SIZES["small"], train=tuple(TRAIN[:4]))
