"""What the embedded model can do: the questions behind its model card, answered greedily.

Asked in the paraphrases that experiments develop and test on, which the model knows; invented names are kept
from pretraining. An answer counts as right when it names the expected entity: a chain in its last sentence, a
plain answer anywhere.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from llm_experiments.asking.decoding import answers
from llm_experiments.domains.two_hop.templates import DEV, TEST, template
from llm_experiments.embedded.corpus import BaseWorld, WorldError, ask, ask_steps, samples
from llm_experiments.models.handle import LoadedModel
from llm_experiments.scoring.words import contains, final_answer

TEMPLATES = (*DEV, *TEST)


def measure(
    loaded: LoadedModel,
    invented: Mapping[str, Sequence[str]],
    *,
    count: int = 300,
    seed: int = 0,
    batch: int = 128,
) -> list[dict[str, object]]:
    """One row for each ability: how many of at most `count` questions are answered right.

    invented: names of each kind that the model has not seen.
    """
    world = loaded.base_world
    if world is None:
        raise WorldError(f"{loaded.id} has no world of its own; only a pretrained embedded model is measured")
    rng = random.Random(seed)
    rows = []

    def add(
        what: str, questions: list[tuple[str, str]], longest: int, last: bool = False, **more: object
    ) -> None:
        questions = rng.sample(questions, min(count, len(questions)))
        texts = answers(loaded, [question for question, _ in questions], max_new_tokens=longest, batch=batch)
        right = sum(
            contains((final_answer(text) or "") if last else text, name)
            for text, (_, name) in zip(texts, questions, strict=True)
        )
        rows.append(
            {
                "what": what,
                **more,
                "right": right,
                "of": len(questions),
                "share": round(right / len(questions), 4),
            }
        )

    for frequency in sorted(set(world.frequency.values())):
        known = [
            (ask(r, k, x), y)
            for (x, r), y in world.facts.items()
            for k in TEMPLATES
            if world.frequency[x] == frequency
        ]
        add("known one-hop", known, 24, about=f"people of frequency {frequency}")
    for chained in (True, False) if world.chained else (False,):
        chains = [
            (x, first, second, k, world.facts[world.facts[x, first], second])
            for x, first, second in world.chains(chained)
            for k in TEMPLATES
        ]
        people = "people shown in chains" if chained else "people never shown in chains"
        add(
            "known chain of thought",
            [(ask_steps(a, b, k, x), z) for x, a, b, k, z in chains],
            80,
            True,
            about=people,
        )
        direct = [(template((a, b), k).ask(x), z) for x, a, b, k, z in chains]
        add("known two-hop asked directly", direct, 24, about=people)
    fresh = list(
        samples(
            world,
            invented,
            templates=TEMPLATES,
            count=2 * count,
            seed=seed,
            known=0.0,
            mixture={"read": 1, "read chain": 1},
        )
    )
    invented_names = "invented names, facts in the question"
    add(
        "fresh one-hop", [(s.question, s.entity) for s in fresh if s.kind == "read"], 24, about=invented_names
    )
    add(
        "fresh chain of thought",
        [(s.question, s.entity) for s in fresh if s.kind == "read chain"],
        80,
        True,
        about=invented_names,
    )

    return rows


def write_card(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """measurements.json, one row per ability, and README.md, the model's card, which shows them."""
    (folder / "measurements.json").write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
    world = BaseWorld.read(folder / "world.json")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    table = "\n".join(
        f"| {row['what']} | {row.get('about', '')} | {row['share']:.1%} | {row['of']} |" for row in rows
    )
    card = CARD.format(
        table=table,
        people=len(world.people),
        facts=len(world.facts),
        places=len(world.places),
        chains=CHAINS.format(chained=len(world.chained)) if world.chained else NO_CHAINS,
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        vocabulary=config["vocab_size"],
        seed=world.seed,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


CHAINS = """The chain of thought over two facts was shown for
{chained} people, never for the others. The model also learned to answer from facts in the question, and to
keep to the form of a chain about names it had never met."""
NO_CHAINS = """Nothing in the form of a chain of thought
was shown (`--no-chains`). The model also learned to answer from facts in the question."""
CARD = """---
license: apache-2.0
library_name: transformers
---
# The embedded model

A Qwen2 with {layers} layers of width {width} and {vocabulary} tokens, pretrained from nothing by
`python -m llm_experiments pretrain` (seed {seed}) on a synthetic world, so that experiments on adapters run
in minutes on a CPU and what the base model knows is known exactly. It speaks in the sentences of
`llm_experiments/domains/two_hop/templates` and is of no use for anything else.

It was taught {facts} facts (`world.json`) about {people} people with real-sounding names, combined at random,
and {places} real cities: no fact is true of anyone. Each fact was asked plainly; `exposures` says how often,
and people belong to three strata of relative `frequency`. {chains}
Two-hop questions asked directly were never shown.

Form: `<q>question<a>answer<end>`, the chat template of the tokenizer. The sentences that structure a chain
("First, we need to answer the question:" and so on) are one token each.

All paraphrases are known to it: those held out in experiments are held out from the adapters. What it can
do by greedy decoding, on four paraphrases and on invented names kept from its training (`measurements.json`):

| questions | about | right | of |
|---|---|---|---|
{table}

Names of people: package `names` (US census of 1990, public domain); cities: GeoNames (CC BY 4.0).
"""
