"""Bridges with other names, and bridges of which the form alone is taught: what is planned and trained on."""

from __future__ import annotations

from itertools import product

import pytest

from llm_experiments.domains.task import read_examples, read_items
from llm_experiments.domains.two_hop.scenes import PAIR, TwoHop
from llm_experiments.embedded.corpus import BaseWorld
from llm_experiments.engine.steps import Plan
from llm_experiments.experiments.registry import EXPERIMENTS
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import Base
from llm_experiments.models.sources import EMBEDDED
from llm_experiments.steps.adapters import TrainAdapter

KNOWN = Base("embedded", "0" * 16, BaseWorld.read(EMBEDDED / "world.json"))
STRANGER = Base("org/model", "1" * 16)
BASES = pytest.mark.parametrize("base", [KNOWN, STRANGER], ids=["known world", "no world"])


def planned(name, base, profile="embedded"):
    return EXPERIMENTS[name].plan(base, PROFILES[profile], (0,))


def study(base, plan=None):
    return TwoHop(base=base, profile=PROFILES["embedded"], seeds=(0,), names=0, plan=plan or Plan())


def merged(plan):
    """The cells of two adapters under one rule, by what their variant says."""
    steps = [plan.steps[address] for address in plan.wanted]
    return [step for step in steps if len(step.library) == 2 and step.merge.rule == "sum"]


def trained(plan, step, name):
    address = step.library[name]
    assert isinstance(plan.steps[address], TrainAdapter)
    return plan.steps[address]


@BASES
def test_a_bridge_of_real_names_shares_none_with_the_tested(base):
    """Its names are of the tested ones' kinds, and what is asked and the recipe are as without it."""
    plan = planned("bridge-names", base)
    cells = {(step.about.task, step.variant.get("bridge_names")): step for step in merged(plan)}
    assert set(cells) == set(product(("setup-2", "setup-6"), ("real", None)))
    for task in ("setup-2", "setup-6"):
        real, invented = cells[task, "real"], cells[task, None]
        asked = [[i.question for i in read_items(plan, step.reading.items)] for step in (real, invented)]
        assert asked[0] == asked[1]
        for name in PAIR:
            one, other = (trained(plan, step, name) for step in (real, invented))
            assert one.training == other.training and (one.seed, one.index) == (other.seed, other.index)
            first, second = (read_examples(plan, step.examples) for step in (one, other))
            own = [a for a, b in zip(first, second, strict=True) if a == b]
            size = PROFILES["embedded"].size("two-hop")
            assert len(own) == size.facts * len(size.train) < len(first)
    scene = study(base).setup(2, "R", bridge="R")
    adapters = scene.composition.adapters
    taught = {name for a in adapters for f in (*a.facts, *a.chains) for name in (f.prompt.entity, f.answer)}
    names = [scene.words.name(entity) for entity in taught]
    assert any(entity.startswith("bridge_") for entity in taught) and len(set(names)) == len(names)


@BASES
def test_the_form_alone_is_the_same_text_without_the_answers_of_its_steps(base):
    plan = planned("bridge-form", base)
    cells = {(step.about.task, step.variant.get("taught")): step for step in merged(plan)}
    assert set(cells) == {("setup-6", "form"), ("setup-6", None), ("setup-0", None)}
    form, whole = cells["setup-6", "form"], cells["setup-6", None]
    assert form.reading.items == whole.reading.items
    for name in PAIR:
        one, other = trained(plan, form, name), trained(plan, whole, name)
        assert one.address != other.address and one.training == other.training
        shown, taught = read_examples(plan, one.examples), read_examples(plan, other.examples)
        assert [(e.question, e.answer) for e in shown] == [(e.question, e.answer) for e in taught]
        chains = [e for e in shown if e.silent]
        assert len(chains) == PROFILES["embedded"].size("two-hop").bridge_facts * 46
        assert not any(e.silent for e in taught)
        for chain in chains:
            (y, z) = (chain.answer[start:stop] for start, stop in chain.silent)
            assert chain.answer.endswith(f"the answer is {z}.")
            # both are written once more, where they are copied, and that is taught
            assert all(
                name in chain.answer[stop:] for name, (_, stop) in zip((y, z), chain.silent, strict=True)
            )
        own = read_items(plan, one.own_task)
        assert {item.ask for item in own} == {"direct"}  # a chain that is not taught is not its task


def test_texts_alone_are_kept_as_before():
    """The ref of examples without silent spans does not know of them, so that finished steps stay."""
    plan = Plan()
    stranger = study(STRANGER, plan)
    plain = stranger.setup(6, "R").task.training["hop1"].examples
    form = stranger.setup(6, "R", form_alone=True).task.training["hop1"].examples
    assert plain != form
    assert {tuple(line) for line in plan.input(plain)} == {("question", "answer")}
    assert any("silent" in line for line in plan.input(form))
