"""Adapters of a pool fitted on examples: the plan, and two steps of it computed on a tiny random model."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_experiments.adapters import peft_files
from llm_experiments.diagnose.answers import AnswerSheet
from llm_experiments.diagnose.combining import least_loss
from llm_experiments.domains.task import Example, read_examples
from llm_experiments.domains.two_hop.templates import SIGNATURES, templates
from llm_experiments.engine.context import Context
from llm_experiments.engine.local import run
from llm_experiments.engine.store import Store
from llm_experiments.experiments.registry import EXPERIMENTS
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import Base
from llm_experiments.merges.merging import apply
from llm_experiments.models.load import load
from llm_experiments.steps import recycled
from llm_experiments.steps.adapters import TrainAdapter
from llm_experiments.steps.recycled import KIN, LAW, POOLS, TARGET, Choice, Recycled, Selected
from results.recycled import Pool
from tests.tiny_models import tiny_qwen2
from toytransformer.compositions import Merge
from toytransformer.spans import by_chance

SIZE = replace(
    PROFILES["small"].size("two-hop"),
    facts=4,
    train=(0, 1, 2, 3),
    conflict_asked=(0, 1),
    pool_worlds=2,
    pool_examples=(5,),
    pool_counts=(3,),
)
TINY = replace(
    PROFILES["small"],
    training=replace(PROFILES["small"].training, steps=12, batch=4, rank=2, base_dtype=None),
    sizes={"two-hop": SIZE},
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    texts = [text for word in SIGNATURES for t in templates((word,)) for text in (t.question, t.answer)]
    return load(str(tiny_qwen2(tmp_path_factory.mktemp("model"), texts * 5, vocabulary=900)))


@pytest.fixture(scope="module")
def plan(tiny):
    return EXPERIMENTS["recycle"].plan(Base(tiny.id, tiny.digest), TINY, (0,), (0, 1))


def steps(plan, kind):
    return [step for step in plan.order() if isinstance(step, kind)]


@pytest.fixture(scope="module")
def finished(tiny, plan, tmp_path_factory):
    """The base and what needs no choice; a choice with the target's own adapter, and one of strangers."""
    store = Store(tmp_path_factory.mktemp("run"))
    first = steps(plan, Selected)[0].address
    choices = (None, Choice("target", "random", 3), Choice("strangers", "loss", 3))
    wanted = [one for one in steps(plan, Recycled) if one.selected == first and one.choice in choices]
    with pytest.MonkeyPatch.context() as patched:  # the published recipes at a tenth of their steps
        shorter = {
            name: replace(one, fitting=replace(one.fitting, steps=10, evaluations=10))
            for name, one in recycled.METHODS.items()
        }
        patched.setattr(recycled, "METHODS", shorter)
        whole = recycled.published.NEW_ADAPTER
        patched.setattr(
            recycled.published, "NEW_ADAPTER", replace(whole, training=replace(whole.training, steps=4))
        )
        addresses = [step.address for step in wanted]
        summary = run(plan, store, Context(store, lambda: tiny), wanted=addresses, progress=False)
    assert not summary.failed, summary.failed
    return store, dict(zip(choices, wanted, strict=True)), plan.steps[first]


def lines(store, step):
    return [json.loads(line) for line in (store.results(step.address) / "recycled.jsonl").open()]


def test_draws_have_targets_of_their_own_and_strangers_in_common(plan):
    one, other = [step.pool.adapters for step in steps(plan, Selected)]
    assert list(one) == list(other) == [TARGET, KIN, *(f"world {k} hop{h}" for k in (1, 2) for h in (1, 2))]
    assert [one[name] == other[name] for name in one] == [False, False, True, True, True, True]
    assert len(steps(plan, TrainAdapter)) == 4 + 2 * 2
    half, whole = (plan.steps[one[name]].training.steps for name in (KIN, TARGET))
    assert (half, whole) == (3, 6)  # half of the profile's steps, in proportion to the facts


def test_no_example_is_in_a_wording_that_is_asked(plan):
    for step in steps(plan, Selected):
        examples = read_examples(plan, step.asked.examples)
        questions = plan.input(step.asked.questions)
        assert len(examples) == 5 and len(questions) == 4 * 2
        assert not {e.question for e in examples} & {q["question"] for q in questions}
        facts = {line["fact"][2]: line for line in plan.input(step.asked.facts)}
        for question in questions:
            (answer,) = [name for name in facts if name in question["answer"]]
            assert question["shown"] == (facts[answer]["shown"] > 0)
        told = Counter(name for e in examples for name in facts if name in e.answer)
        assert all(told[name] == line["shown"] for name, line in facts.items())


def test_no_world_of_the_pool_is_the_targets(plan):
    """A stranger may be about the same people, but what it says is another world's."""
    step = steps(plan, Selected)[0]
    stored = {line["adapter"]: line["facts"] for line in plan.input(step.pool.facts)}
    own = {tuple(fact) for fact in stored[TARGET]}
    assert {tuple(fact) for fact in stored[KIN]} < own
    for name in step.pool.names("strangers"):
        assert len(stored[name]) == 4 and own != {tuple(fact) for fact in stored[name]}


def test_the_choices_are_kept_with_what_the_theory_says(finished):
    store, _, selected = finished
    task, *choices = lines(store, selected)
    assert task["pool"] == list(selected.pool.adapters) and len(task["shown"]) == 8
    assert [(line["pool"], line["rule"], line["count"]) for line in choices] == [
        (one.pool, one.rule, one.count) for one in selected.choices
    ]
    for line in choices:
        names = selected.pool.names(line["pool"])
        assert set(line["adapters"]) <= set(names)
        assert len(line["adapters"]) == (line["count"] or len(names))
        assert (line["adapters"][0] == TARGET) == (line["pool"] == "target")
        chance = by_chance(len(line["adapters"]), task["facts"], task["facts_shown"])
        assert line["by_chance"] == chance
        if line["pool"] == "target":
            assert line["overlap"] == pytest.approx(1)
    assert set(POOLS) == {line["pool"] for line in choices}


def test_what_is_kept_is_what_the_merged_model_says(finished, tiny, plan):
    """Base, single adapter, mean and the mixture law, each computed here from the files of the adapters."""
    store, wanted, selected = finished
    asked = [Example(q["question"], q["answer"]) for q in plan.input(selected.asked.questions)]
    sheet = AnswerSheet.of(tiny, asked)

    def adapter(name):
        return peft_files.read(store.results(selected.pool.adapters[name]) / "adapter", name=name)

    def said(library, merge, sheet=sheet):
        with apply(tiny, library, merge):
            return sheet.logits(tiny)

    def check(line, logits, places=5e-5):
        scores = sheet.scores(logits)
        assert line["logprob"] == pytest.approx(scores.logprob.tolist(), abs=places + 1e-4)
        assert line["right"] == scores.right.int().tolist()

    first, *singles = lines(store, wanted[None])
    assert first["kind"] == "recycled"
    assert [line["control"] for line in singles] == ["base", TARGET, KIN, "new", "new, as published"]
    base = said([], Merge("sum"))
    check(singles[0], base)
    check(singles[1], said([adapter(TARGET)], Merge("sum")))
    choice = Choice("strangers", "loss", 3)
    taken = next(
        line["adapters"] for line in lines(store, selected)[1:] if line.items() >= choice.about.items()
    )
    library = [adapter(name) for name in taken]
    cells = {(line.get("method"), line.get("control")): line for line in lines(store, wanted[choice])[1:]}
    assert set(cells) == {(name, "recycled") for name in ("adaptive", "mean", LAW)}
    check(cells["mean", "recycled"], said(library, Merge("mean")))
    law = cells[LAW, "recycled"]
    shown = AnswerSheet.of(tiny, read_examples(plan, selected.asked.examples))
    told = said([], Merge("sum"), shown)
    alone = torch.stack([said([one], Merge("sum"), shown) for one in library])
    weights = least_loss(shown, told, alone, least=-1.5)

    def loss(values):
        mixed = told + torch.einsum("k,kpv->pv", torch.tensor(values, dtype=told.dtype), alone - told)
        return shown.scores(mixed).loss

    best = loss(weights)
    for k in range(len(weights)):  # no neighbour inside the bounds is better
        for step in (-0.05, 0.05):
            moved = [min(1.5, max(-1.5, w + step * (k == i))) for i, w in enumerate(weights)]
            assert loss(moved) >= best - 1e-4
    parts = torch.stack([said([one], Merge("sum")) for one in library])
    mixed = base + torch.einsum("k,kpv->pv", torch.tensor(weights, dtype=base.dtype), parts - base)
    assert law["foretold_logprob"] == pytest.approx(sheet.scores(mixed).logprob.tolist(), abs=1e-3)
    check(law, said(library, Merge("sum", weights)))


def test_controls_stand_beside_the_recycled(finished):
    store, wanted, _ = finished
    cells = Counter(
        (line["method"], line["control"]) for line in lines(store, wanted[Choice("target", "random", 3)])[1:]
    )
    expected = {
        (method, control)
        for method in ("adaptive", LAW)
        for control in ("recycled", "drawn", "norms", "shuffled")
    }
    assert set(cells) == expected | {("lorahub", "recycled"), ("mean", "recycled")}
    assert set(cells.values()) == {1}


def test_a_page_reads_what_a_run_wrote(finished):
    store, wanted, selected = finished
    pool = Pool(line for step in (selected, *wanted.values()) for line in lines(store, step))
    assert pool.examples == [5] and pool.targets == ["names 0, seed 0"]
    cell = pool.cell(5, "adaptive", "drawn", pool="target", rule="random", count=3)
    assert 0 <= cell.mean() <= 1 and cell.answers[0].selected["adapters"][0] == TARGET
    assert np.isfinite(pool.single(5, "new").mean("loss"))
