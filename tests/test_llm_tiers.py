"""The experiments behind predictions of merges: which adapters they share, what they ask, and of whom."""

from __future__ import annotations

import pytest

from llm_experiments.domains.task import read_items
from llm_experiments.domains.two_hop.kept import Kept
from llm_experiments.domains.two_hop.rendering import STEP_BY_STEP, in_context
from llm_experiments.domains.two_hop.scenes import PAIR, TwoHop
from llm_experiments.domains.two_hop.tiers import DEVELOPMENT, TEST, WEIGHTS
from llm_experiments.embedded.corpus import BaseWorld
from llm_experiments.engine.steps import Plan
from llm_experiments.experiments.registry import EXPERIMENTS
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import Base
from llm_experiments.models.sources import EMBEDDED
from llm_experiments.steps.adapters import TrainAdapter
from llm_experiments.steps.asking import Ask
from results.rows import CellInfo

BASE = Base("embedded", "0" * 16, BaseWorld.read(EMBEDDED / "world.json"))
INFO = {"setting": {}, "spec_hash": None, "names": 0, "digest": None, "dtype": None, "library": ()}
NAMES = ("scales", "context", "oracle-gate", "tiers-development", "tiers-test", "bridge")


@pytest.fixture(scope="module")
def plans():
    return {name: EXPERIMENTS[name].plan(BASE, PROFILES["embedded"], (0,)) for name in NAMES}


def wanted(plan):
    return [plan.steps[address] for address in plan.wanted]


def test_merges_are_of_the_adapters_that_are_asked_alone(plans):
    """By address: every adapter of every merge has its scale curve, all of whose weights are there."""
    curves = {}
    for step in wanted(plans["scales"]):
        if step.control in PAIR:
            ((name, address),) = step.library.items()
            assert step.control == name and step.merge.rule == "sum"
            curves.setdefault(address, []).append(*step.merge.weights)
    assert len(curves) == 10 and all(tuple(sorted(weights)) == WEIGHTS for weights in curves.values())
    for name in ("tiers-development", "tiers-test"):
        merged = [step for step in wanted(plans[name]) if len(step.library) == 2]
        assert merged and {address for step in merged for address in step.library.values()} <= set(curves)
    shared = [address for address in plans["bridge"].steps if address in plans["tiers-development"].steps]
    assert (
        sum(isinstance(plans["bridge"].steps[address], Ask) for address in shared) >= 6
    )  # asked once in all


def test_nothing_of_the_test_setups_is_merged_in_development(plans):
    for name, numbers in (("tiers-development", DEVELOPMENT), ("tiers-test", TEST)):
        tasks = {step.about.task for step in wanted(plans[name])}
        assert tasks == {f"setup-{number}" for number in numbers}
    for step in wanted(plans["oracle-gate"]):
        assert step.about.task in {f"setup-{number}" for number in DEVELOPMENT}
    assert not set(DEVELOPMENT) & set(TEST) and set(DEVELOPMENT) | set(TEST) == {0, 2, 4, 5, 6, 7, 8}
    assert all(len(step.library) < 2 for name in ("scales", "context") for step in wanted(plans[name]))


def test_scale_curves_ask_directly_and_have_one_set_of_candidates(plans):
    plan = plans["scales"]
    alone = [step for step in wanted(plan) if step.library]
    assert len({step.reading.candidates for step in alone}) == 1
    groups = {(item.group, item.ask) for step in alone for item in read_items(plan, step.reading.items)}
    assert groups == {("hop1", "direct"), ("hop2", "direct"), ("two-hop", "direct")}


def test_the_oracle_gate_asks_chains_beside_the_best_router_and_the_sum(plans):
    plan = plans["oracle-gate"]
    gated = [step for step in wanted(plan) if step.variant.get("gate") == "by step"]
    assert len(gated) == len(DEVELOPMENT) and all(tuple(step.library) == PAIR for step in gated)
    for step in gated:
        items = read_items(plan, step.reading.items)
        assert {item.ask for item in items} == {"steps"}
        assert all(item.target.count(step.marker) == 1 for item in items)
    beside = {(step.merge.rule, step.merge.option_dict.get("top_k")) for step in wanted(plan)}
    assert beside == {("sum", None), ("arrow-products", 1)}


def test_in_context_every_right_answer_stands_in_the_prompt_before_the_question(plans):
    plan = plans["context"]
    for step in wanted(plan):
        assert step.variant == {"context": "facts"}
        for item in read_items(plan, step.reading.items):
            told = item.question.partition(STEP_BY_STEP)[0] if item.ask == "steps" else item.question
            right = item.target.rstrip(".").rpartition(" is ")[2] if item.ask == "steps" else None
            assert item.extra["context"] == "facts"
            if right is not None:
                assert right in told and item.question.count(STEP_BY_STEP) == 1
            else:
                assert item.target in item.question or item.group == "two-hop"
    bases = {step.about.dataset for step in wanted(plan) if not step.library}
    assert bases == set("FHR")


def test_a_scene_in_context_is_the_same_however_it_is_reached():
    """The prompt names both facts, in the order of the chain, in the wording of the question."""
    plan = Plan()
    study = TwoHop(BASE, PROFILES["embedded"], (0,), 0, plan)
    scene = study.setup(0, "F")
    items = {item.id: item for item in read_items(plan, scene.task.items)}
    for id, other in (("x1 R1/direct/48", "y1 R2/direct/48"), ("x3 R1/direct/49", "y3 R2/direct/49")):
        facts = f"{items[id].target} {items[other].target} "
        assert in_context(items[id], scene.composition, scene.words).question == facts + items[id].question
        assert in_context(items[other], scene.composition, scene.words).question.startswith(facts)


@pytest.mark.parametrize("dataset", "FR")
def test_answers_in_context_can_be_read_anew(dataset):
    """What is kept of such an item and its composition gives the same item again."""
    study = TwoHop(BASE, PROFILES["embedded"], (0,), 0, Plan())
    scene = study.setup(2, dataset)
    info = CellInfo(
        **dict.fromkeys(("domain", "task", "items", "base", "rule"), "-"), **INFO, dataset=dataset
    )
    kept = Kept(info, scene.composition, BASE.world)
    for item in read_items(study.plan, scene.task.items):
        told = in_context(item, scene.composition, scene.words)
        assert kept.item(told) == told and kept.item(item) == item != told


def test_adapters_are_trained_by_the_profile_alone(plans):
    trained = [s for name in NAMES for s in plans[name].steps.values() if isinstance(s, TrainAdapter)]
    assert {step.training for step in trained if "setup-2" in step.title} == {PROFILES["embedded"].training}
