"""The named experiments: what they plan, and one of each kind of step computed on a tiny random model."""

import functools
import json
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from llm_experiments.adapters.peft_files import read
from llm_experiments.asking import evaluation
from llm_experiments.asking.gates import ANSWER, PROMPT, PROMPT_END
from llm_experiments.diagnose.combining import FITTED
from llm_experiments.diagnose.verdict import SEPARATE
from llm_experiments.domains.math.sizes import Size as MathSize
from llm_experiments.domains.task import read_items
from llm_experiments.domains.two_hop.conflicts import KNOWN, MADE
from llm_experiments.domains.two_hop.edit_step import REFERENCE, UNRELATED, Edit
from llm_experiments.domains.two_hop.rendering import FIRST, SECOND, STEP_BY_STEP, THEREFORE
from llm_experiments.domains.two_hop.scenes import ARROW, UNIFORM, TwoHop
from llm_experiments.domains.two_hop.templates import SIGNATURES, templates
from llm_experiments.embedded.corpus import BaseWorld
from llm_experiments.engine.context import Context
from llm_experiments.engine.local import run
from llm_experiments.engine.steps import Plan, in_order
from llm_experiments.engine.store import Store
from llm_experiments.experiments.registry import EXPERIMENTS
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import DEV_NAMES, Base
from llm_experiments.merges import merging
from llm_experiments.models.load import load
from llm_experiments.models.sources import EMBEDDED
from llm_experiments.steps.adapters import RandomAdapter, TrainAdapter, read_library, regauged
from llm_experiments.steps.asking import Ask, best_temperature, with_temperature
from llm_experiments.steps.forecasts import FILE
from results.rows import CellInfo, Row
from tests import math_data, other_sets
from tests.tiny_models import tiny_qwen2
from toytransformer.compositions import Composition, Merge, SpecError
from toytransformer.merging import RULES
from toytransformer.prediction import predict
from toytransformer.regimes import FullLimit

BASE = Base("tiny", "0" * 16)
SIZE = replace(
    PROFILES["small"].size("two-hop"),
    facts=2,
    bridge_facts=2,
    library_facts=2,
    train=(0, 1),
    dev_facts=1,
    fit_facts=1,
    fit_templates=2,
    relabellings=1,
    edited_facts=2,
)
TINY = replace(
    PROFILES["small"],
    temperatures=(0.3, 0.1),  # and not 1, which a rule takes when nothing is chosen
    training=replace(PROFILES["small"].training, steps=2, batch=4, rank=2, base_dtype=None),
    sizes={"two-hop": SIZE, "math": MathSize(templates=2, train=1, asked=1, own=2, dev=2)},
)


@pytest.fixture(scope="module", autouse=True)
def published(tmp_path_factory):
    """Copies of the published sets that experiments ask for, made here."""
    with pytest.MonkeyPatch.context() as patched:
        folder = tmp_path_factory.mktemp("sets")
        for variable, path in (math_data.write(folder) | other_sets.write(folder)).items():
            patched.setenv(variable, path)
        yield


@functools.cache
def plan_of(name, seeds=(0,), names=(0,)):
    return EXPERIMENTS[name].plan(BASE, TINY, seeds, names)


def wanted(name, kind=None, **options):
    """The steps an experiment wants, of one kind."""
    plan = plan_of(name, **options)
    steps = [plan.steps[address] for address in plan.wanted]
    return [step for step in steps if kind is None or isinstance(step, kind)]


def needed(name, kind=None, **options):
    """All steps of an experiment's plan, of one kind."""
    return [step for step in plan_of(name, **options).order() if kind is None or isinstance(step, kind)]


def spec_of(plan, step):
    """The composition that predicts a cell."""
    return Composition.from_json(plan.spec(step.about.spec_hash))


def rows_of(store, step):
    return [Row.from_json(line) for line in (store.results(step.address) / "rows.jsonl").open()]


def info_of(store, step):
    return CellInfo.from_json((store.results(step.address) / "cells.jsonl").read_text())


def line_of(store, address, file):
    return json.loads((store.results(address) / file).read_text())


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model to which the words of the templates are single tokens, so that chains are short."""
    texts = [text for word in SIGNATURES for t in templates((word,)) for text in (t.question, t.answer)]
    lines = [*texts, FIRST, SECOND, STEP_BY_STEP, THEREFORE] * 5
    return tiny_qwen2(tmp_path_factory.mktemp("model"), lines, vocabulary=900)


@pytest.fixture(scope="module")
def tiny(model_folder):
    return load(str(model_folder))


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """Some steps of every kind, computed into one store."""
    store = Store(tmp_path_factory.mktemp("run"))
    steps = {
        "quick": wanted("quick"),
        "table2": [step for step in wanted("table2", Ask) if step.fit][:1],
        "gauge": [step for step in wanted("gauge", Ask) if step.merge.rule in ("mean", "linear")],
        "edits": wanted("edits")[:1],
        "bridge": [step for step in wanted("bridge", Ask) if step.control == "random"],
        "merge-outcomes": wanted("merge-outcomes")[-1:],
        "diagnosis": wanted("diagnosis"),
    }
    whole = Plan()
    for name in steps:
        whole.include(plan_of(name))
    chosen = [step.address for several in steps.values() for step in several]
    summary = run(whole, store, Context(store, lambda: tiny), wanted=chosen, progress=False)
    assert not summary.failed, summary.failed
    return store, steps


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_plan_is_the_same_every_time_and_names_each_step_once(name):
    first, again = plan_of(name), EXPERIMENTS[name].plan(BASE, TINY, (0,))
    assert list(first.wanted) == list(again.wanted) != []
    assert list(first.steps) == list(again.steps) and first.inputs == again.inputs
    labels = [step.label for step in wanted(name)]
    assert len(set(labels)) == len(labels), "two steps that differ would print the same line"


def test_seeds_and_names_add_steps_and_change_none():
    for name in ("quick", "bridge"):
        one, two = (set(plan_of(name, seeds).steps) for seeds in ((0,), (0, 1)))
        assert one < two
        assert set(plan_of(name, (0,), (0, 1)).steps) > one
    for wrong, what in (((), "seeds"), ((0, 0), "seeds"), ((-1,), "seeds")):
        with pytest.raises(SpecError, match=what):
            plan_of("quick", wrong)
    with pytest.raises(SpecError, match="names"):
        plan_of("quick", (0,), ())
    with pytest.raises(SpecError, match="temperatures are chosen"):
        plan_of("quick", (0,), (0, DEV_NAMES))


def test_another_draw_of_names_is_another_world_asked_by_the_same_spec():
    plan = plan_of("quick", (0,), (0, 1))
    asked = [plan.steps[address] for address in plan.wanted]
    drawn = {names: [step for step in asked if step.about.names == names] for names in (0, 1)}
    assert len(drawn[0]) == len(drawn[1]) > 0
    for one, other in zip(drawn[0], drawn[1], strict=True):
        assert one.about.spec_hash == other.about.spec_hash
        assert not {*one.library.values()} & {*other.library.values()}
        questions = [
            {item.question for item in read_items(plan, step.reading.items)} for step in (one, other)
        ]
        assert len(questions[0] & questions[1]) < len(questions[0])


def test_another_model_or_recipe_shares_no_result():
    here = plan_of("bridge").steps
    other_model = EXPERIMENTS["bridge"].plan(replace(BASE, digest="1" * 16), TINY, (0,))
    assert not set(here) & set(other_model.steps)
    longer = replace(TINY, training=replace(TINY.training, steps=3))
    retrained = EXPERIMENTS["bridge"].plan(BASE, longer, (0,)).steps
    assert {retrained[address].control for address in set(here) & set(retrained)} == {"base"}


def test_experiments_share_the_adapters_they_have_in_common():
    study = TwoHop(BASE, TINY, (0,), 0, Plan())

    def adapters(number, dataset="R"):
        return study.library(study.setup(number, dataset), 0).adapters

    plain = adapters(0)
    assert adapters(4)["hop2"] == plain["hop2"] and adapters(4)["hop1"] != plain["hop1"]
    assert adapters(5)["hop1"] == plain["hop1"]
    fake, half = adapters(0, "F"), adapters(0, "H")
    assert fake["hop1"] == half["hop1"]  # H differs from F in its places only
    assert fake["hop2"] != half["hop2"]
    assert set(plan_of("fig1").steps) <= set(plan_of("table7").steps)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_step_travels_and_holds_no_text(name):
    plan = plan_of(name)
    for step in plan.order():
        sent = pickle.dumps(step)
        assert len(sent) < 4000, step.label
        there = pickle.loads(sent)
        assert there == step and there.address == step.address and there.document == step.document
        asked = [line["question"] for ref in step.texts for line in plan.input(ref) if "question" in line]
        assert not [text for text in asked if text.encode() in sent]


def test_a_step_computes_in_another_process_from_the_store_alone(finished, model_folder, tmp_path):
    store, steps = finished
    base = next(step for step in steps["quick"] if not step.library)
    code = """
import pickle, sys
from llm_experiments.engine.context import Context
from llm_experiments.engine.local import compute
from llm_experiments.engine.store import Store
from llm_experiments.models.load import load
store, step = Store(sys.argv[1]), pickle.load(sys.stdin.buffer)
with store.lock(step.address):
    compute(step, store, Context(store, lambda: load(sys.argv[2])))
"""
    there = Store(tmp_path / "there")
    plan = plan_of("quick")
    there.add_inputs(plan.inputs, plan.specs)
    command = [sys.executable, "-c", code, str(there.folder), str(model_folder)]
    subprocess.run(command, input=pickle.dumps(base), check=True)
    rows = [rows_of(each, base) for each in (store, there)]
    assert rows[0] == rows[1] and rows[0]


def test_controls_stand_beside_every_claim():
    for name in ("table1", "table2", "table7", "table8", "table9", "survival", "relabel", "gauge"):
        controls = {step.control for step in wanted(name, Ask)}
        assert controls >= {"base", "hop1", "hop2", "oracle", "mixed", "joint", "random"}, name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_two_cells_have_rows_that_nothing_tells_apart(name):
    asked = wanted(name, Ask)
    told = [
        repr((step.about, list(step.library), step.merge, step.seed, step.layers, step.control, step.variant))
        for step in asked
    ]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_name_the_adapters_that_answer(name):
    plan = plan_of(name)
    for step in (step for step in wanted(name, Ask) if step.library):
        adapters = [plan.steps[address] for address in step.library.values()]
        experts = [plan.steps[a.of] if isinstance(a, RandomAdapter) else a for a in adapters]
        assert [expert.title.partition(" of ")[0] for expert in experts] == list(step.library), step.label
        if step.about.spec_hash is None:
            continue
        assert [adapter.name for adapter in spec_of(plan, step).adapters] == list(step.library)
        assert spec_of(plan, step).merge == step.merge


def test_table1_has_every_setup_under_both_forms_of_both_routings():
    asked = [step for step in wanted("table1", Ask) if step.control is None]
    assert {(step.about.task, step.merge.rule) for step in asked} == {
        (f"setup-{k}", rule) for k in range(9) for rule in UNIFORM + ARROW
    }
    datasets = {step.about.task: step.about.dataset for step in asked}
    assert datasets.pop("setup-1") == "F" and set(datasets.values()) == {"R"}
    for step in asked:
        assert (step.sweep is not None) == RULES[step.merge.rule].tempered


def test_every_rule_with_a_temperature_gets_a_sweep_and_no_other():
    plan = Plan()
    study = TwoHop(BASE, TINY, (0,), 0, plan)
    library = study.library(study.setup(0, "R"), 0)
    for name, rule in RULES.items():
        step = study.answers(library, name, 0)
        assert (step.sweep is not None) == rule.tempered, name
        if rule.tempered:  # but one that is set is not chosen
            assert study.answers(library, Merge(name, options={"temperature": 0.5}), 0).sweep is None


def test_contrast_changes_one_thing_at_a_time():
    """Libraries are those of the other experiments, or differ from them in what their rows say."""
    shared, plan = set(plan_of("bridge").steps), plan_of("contrast")
    asked = [step for step in wanted("contrast", Ask) if step.control is None]
    for step in asked:
        for address in step.library.values():
            training = plan.steps[address].training
            assert {key: getattr(training, key) for key in step.variant} == step.variant
            assert step.variant or address in shared
    assert len({repr(sorted(step.variant.items())) for step in asked}) == 4


def test_relabellings_retrain_adapter_1_alone():
    relabelled = [step for step in wanted("relabel", Ask) if "relabelling" in step.variant]
    by_draw = {}
    for step in (step for step in relabelled if len(step.library) == 2):
        key = (step.about.dataset, step.variant["relabelling"])
        by_draw.setdefault(key, set()).add(tuple(step.library.values()))
    assert all(len(libraries) == 1 for libraries in by_draw.values())
    for dataset in "FR":
        ((plain,), (other,)) = (by_draw[dataset, draw] for draw in (0, 1))
        assert plain[1] == other[1]
    assert any(by_draw[dataset, 0] != by_draw[dataset, 1] for dataset in "FR")


@pytest.mark.parametrize("name", [name for name, made in EXPERIMENTS.items() if made.needs == ("two-hop",)])
def test_a_temperature_is_chosen_on_plain_adapters_of_other_names(name):
    """By single hops in development wordings: no question of the test, no entity, no composed answer, and no
    bridge, so that every setup is routed at the same temperature.
    """
    routed = {}
    plan = plan_of(name)
    for step in wanted(name, Ask):
        if step.sweep is None:
            continue
        sweep = plan.steps[step.sweep]
        assert list(sweep.library) == list(step.library) and sweep.merge == step.merge
        for ours, theirs in zip(step.library.values(), sweep.library.values(), strict=True):
            ours, theirs = plan.steps[ours], plan.steps[theirs]
            recipe = replace(TINY.training, layers=ours.training.layers)
            assert replace(theirs.training, steps=recipe.steps) == recipe
            assert ours.examples != theirs.examples
        same = (step.about.dataset, tuple(step.library), step.merge, step.layers)
        if step.about.task.startswith("setup"):
            assert routed.setdefault(same, step.sweep) == step.sweep
        chosen_on, asked = (read_items(plan, reading.items) for reading in (sweep.reading, step.reading))
        assert {item.extra["template"] for item in chosen_on} == set(SIZE.dev)
        assert set(SIZE.dev).isdisjoint({*SIZE.test, *SIZE.train})
        assert {item.group for item in chosen_on} == {"hop1", "hop2"}
        assert {item.ask for item in chosen_on} == {"direct"}
        known = {plan.input(step.reading.context)[0]["names"][i.extra["prompt"].split()[0]] for i in asked}
        assert not [item for item in chosen_on if any(name in item.question for name in known)]


def test_every_measured_composition_can_be_predicted_under_the_same_hash(finished):
    store, steps = finished
    for name in ("quick", "gauge"):
        for step in steps[name]:
            composition = spec_of(plan_of(name), step)
            items = {item.id: item for item in read_items(plan_of(name), step.reading.items)}
            rows = rows_of(store, step)
            assert info_of(store, step).spec_hash == composition.spec_hash
            assert [row.item for row in rows] == list(items)
            assert len(rows) == len(composition.questions) * len(SIZE.test)
            if step.library:
                asked = {(i.extra["prompt"], i.ask, i.group, i.roles.get("correct")) for i in items.values()}
                predicted = predict(composition, FullLimit()).records()
                assert {(row.prompt, row.decode, row.group, row.correct) for row in predicted} == asked


def test_rows_say_what_was_merged_how_and_on_what(finished, tiny):
    store, steps = finished
    for step in steps["quick"]:
        info = info_of(store, step)
        assert info.rule == step.merge.rule and info.base == tiny.id and info.digest == tiny.digest
        assert info.library == tuple(step.library) and info.adapters == tuple(step.library.values())
        assert (info.domain, info.names, info.dataset) == ("two-hop", 0, "R")
        assert ("temperature" in info.chosen) == RULES[step.merge.rule].tempered
        if step.sweep is not None:
            sweep = line_of(store, step.sweep, "sweeps.jsonl")
            assert info.chosen["temperature"] == sweep["chosen"] == best_temperature(sweep["sweep"])
            assert (info.chosen["chosen_by"], info.chosen["chosen_names"]) == ("hops", DEV_NAMES)
            assert [row["temperature"] for row in sweep["sweep"]] == list(TINY.temperatures)
            assert info.spectral_gap is not None
        for row in rows_of(store, step):
            assert row.cell == info.key and row.text is not None
            assert (row.logprobs is not None) == ("/direct" in row.item)
            routed = {PROMPT, ANSWER if "/direct" in row.item else PROMPT_END}
            assert set(row.gates or ()) == (routed if RULES[info.rule].routed else set())
            for by_block in (row.gates or {}).values():
                assert tuple(by_block) == info.library
                assert all(
                    sum(ws) == pytest.approx(1, abs=2e-4) for ws in zip(*by_block.values(), strict=True)
                )


def test_an_adapter_step_is_an_ordinary_adapter_checked_on_its_own_task(finished):
    store, _ = finished
    plan = plan_of("quick")
    trained = [step for step in in_order(plan.steps, plan.wanted) if isinstance(step, TrainAdapter)]
    assert trained
    for step in trained:
        assert read(store.results(step.address) / "adapter").modules
        own = read_items(plan, step.own_task)
        assert {item.extra["template"] for item in own} == set(SIZE.test)
        line = line_of(store, step.address, "adapters.jsonl")
        assert line["address"] == step.address and line["own_task"]["items"] == len(own) > 0
        asked = {item.question for item in own}
        assert not asked & {line["question"] for line in plan.input(step.examples)}


def test_random_controls_have_the_norms_of_the_experts(finished):
    store, steps = finished
    plan = plan_of("bridge")
    controls = [plan.steps[address] for step in steps["bridge"] for address in step.library.values()]
    assert controls
    for control in controls:
        pair = [read(store.results(address) / "adapter").modules for address in (control.of, control.address)]
        for name, lora in pair[0].items():
            norms = [torch.linalg.norm(each.delta().double()) for each in (lora, pair[1][name])]
            # float32 factors of rank r: the product's norm is exact to a few roundings
            assert torch.isclose(*norms, rtol=16 * torch.finfo(torch.float32).eps, atol=0)
            assert not torch.allclose(lora.delta(), pair[1][name].delta())


@pytest.mark.parametrize("gauge", ["flipped", "svd", "random:0"])
def test_a_gauge_moves_the_factors_and_not_the_product(finished, gauge):
    store, steps = finished
    weights = read(store.results(steps["gauge"][0].library["hop1"]) / "adapter")
    turned, first = regauged(weights, gauge, 1), regauged(weights, gauge, 0)
    for name, lora in weights.modules.items():
        other = turned.modules[name]
        scale = torch.linalg.norm(lora.write.double()) * torch.linalg.norm(lora.read.double())
        error = torch.linalg.norm((other.delta() - lora.delta()).double())
        assert error <= 64 * torch.finfo(lora.write.dtype).eps * scale
        if torch.linalg.norm(lora.write) > 0:
            assert not torch.equal(other.write, lora.write)
            # A matrix that all adapters share would cancel in the cross terms B_i A_j.
            assert gauge == "svd" or not torch.equal(other.write, first.modules[name].write)
    assert regauged(weights, "as trained", 1) == weights
    for wrong in ("", "random", "random:x", "mirror"):
        with pytest.raises(ValueError, match="gauge"):
            regauged(weights, wrong, 0)


def test_fitted_rules_see_chains_that_are_never_asked(finished):
    store, steps = finished
    plan = plan_of("table2")
    for step in steps["table2"]:
        asked = {item.question for item in read_items(plan, step.reading.items)}
        shown = spec_of(plan, step).examples
        assert shown and not {fact.prompt for fact in shown} & {
            q.prompt for q in spec_of(plan, step).questions
        }
        assert not asked & {line["question"] for line in plan.input(step.fit)}
        details = line_of(store, step.address, "details.json")
        assert details["fitted"]["loss"] <= details["fitted"]["loss_start"]


def test_the_embedded_world_has_people_enough_for_the_edits():
    world = BaseWorld.read(EMBEDDED / "world.json")
    plan = EXPERIMENTS["edits"].plan(Base("embedded", "0" * 16, world), PROFILES["embedded"], (0,))
    steps = [plan.steps[address] for address in plan.wanted]
    assert {step.dataset for step in steps} == {"F", "R"}
    for step in steps:
        assert len(set(plan.input(step.others))) == REFERENCE + UNRELATED


def test_edit_rows_put_the_toy_beside_every_layer(finished):
    store, steps = finished
    (step,) = steps["edits"]
    assert isinstance(step, Edit)
    rows = [json.loads(line) for line in (store.results(step.address) / "edits.jsonl").open()]
    overlaps = [row for row in rows if row["kind"] == "overlap"]
    assert {row["layer"] for row in overlaps} == {0, 1}
    assert all("toy_c1_own" in row and "toy_c2_own" in row for row in overlaps)
    tests = [row for row in rows if row["kind"] == "over layers"]
    assert {row["metric"] for row in tests} == {row["metric"] for row in overlaps}
    edits = [row for row in rows if row["kind"] == "edit"]
    assert {row["whitened"] for row in edits} == {False, True}
    assert all(row["shift_over_bound"] <= 1 for row in edits)


def test_what_a_merge_loses_is_measured_on_what_was_predicted(finished):
    store, steps = finished
    (outcome,) = steps["merge-outcomes"]
    said = [json.loads(line) for line in (store.results(outcome.forecast) / FILE).open()]
    found = [json.loads(line) for line in (store.results(outcome.address) / FILE).open()]
    about, predicted = said[0], said[1:]
    assert about["library"] == list(outcome.library) and len(about["norms"]) == len(outcome.library)
    assert [line["merge"] for line in predicted] == [line["merge"] for line in found[1:]]
    assert {line["forecast"] for line in [*said, *found]} == {outcome.forecast}
    assert all(0 <= line["kept"] <= about["known"] for line in [*predicted, *found[1:]])
    assert all(line["given"] is not None for line in predicted if line["merge"] == FITTED)


def test_the_doctor_names_adapters_by_what_was_made_of_them(finished):
    store, steps = finished
    (step,) = steps["diagnosis"]
    lines = [json.loads(line) for line in (store.results(step.address) / FILE).open()]
    named = {
        (line["finding"]["kind"], *line["finding"]["adapters"]) for line in lines if line["kind"] == "finding"
    }
    copy, opposite, trace, wider = MADE
    assert {("base", wider), ("small", trace), ("same", KNOWN[-1], copy)} <= named
    assert {("opposite", KNOWN[-1], opposite), ("opposite", copy, opposite)} <= named
    assert lines[0]["library"] == [*KNOWN, *MADE]


@pytest.mark.slow
def test_the_doctor_names_adapters_that_agree_and_that_contradict_each_other(tmp_path):
    world = BaseWorld.read(EMBEDDED / "world.json")
    loaded = load("embedded")
    plan = EXPERIMENTS["diagnosis"].plan(Base("embedded", loaded.digest, world), PROFILES["embedded"], (0,))
    store = Store(tmp_path)
    assert not run(plan, store, Context(store, lambda: loaded), progress=False).failed
    (address,) = plan.wanted
    lines = [json.loads(line) for line in (store.results(address) / FILE).open()]
    found = [line["finding"] for line in lines if line["kind"] == "finding"]
    pairs = [line["sentence"]["text"] for line in lines if line["kind"] == "sentence"]
    one, again, denied = KNOWN[:3]
    assert ["alike", [one, again]] in [[f["kind"], f["adapters"]] for f in found]
    assert any(text.startswith(f"{one} and {again} agree") for text in pairs)
    assert any(text.startswith(f"{one} and {denied} contradict each other") for text in pairs)
    assert lines[0]["decision"] == SEPARATE


def test_temperature_prefers_right_answers_then_heat():
    def row(temperature, share):
        return {"temperature": temperature, "share": share}

    assert best_temperature([row(1.0, 0.2), row(0.1, 0.3)]) == 0.1
    assert best_temperature([row(0.1, 0.3), row(1.0, 0.3), row(0.3, 0.3)]) == 1.0


def test_what_several_steps_write_alike_is_assembled_once(finished):
    store, steps = finished
    plan = plan_of("quick")
    store.add_run({"experiment": "quick"}, [{"address": s.address, "label": s.label} for s in plan.order()])
    items = list(store.rows("items.jsonl"))
    asked = {step.reading.items for step in steps["quick"]}
    assert len(items) == sum(len(plan.input(ref)) for ref in asked) == len(set(items))
    specs = [json.loads(line) for line in store.rows("specs.jsonl")]
    assert {spec["spec_hash"] for spec in specs} == {step.about.spec_hash for step in steps["quick"]}
    for spec in specs:
        assert Composition.from_json(json.dumps(spec["spec"])).spec_hash == spec["spec_hash"]


def test_how_arrow_routed_is_kept(finished):
    store, steps = finished
    routed = [step for step in steps["quick"] if step.sweep is not None]
    assert routed
    for step in routed:
        layers = line_of(store, step.address, "details.json")["routing"]
        assert layers
        for layer in layers.values():
            # two weights of each token, float64 sums: their means add up to one
            assert sum(layer["weights"]) == pytest.approx(1, abs=1e-6) and layer["tokens"] > 0


def test_arrow_routes_at_the_temperature_that_was_chosen(finished, tiny):
    store, steps = finished
    step = next(step for step in steps["quick"] if step.sweep is not None)
    library = read_library(Context(store, lambda: tiny), step.library)
    items = read_items(plan_of("quick"), step.reading.items)
    kept = line_of(store, step.address, "details.json")["routing"]
    chosen = line_of(store, step.sweep, "sweeps.jsonl")["chosen"]
    off = {}
    for temperature in (*TINY.temperatures, 1.0):
        merge = with_temperature(step.merge, temperature)
        with merging.apply(tiny, library, merge, seed=step.seed, statistics=True) as applied:
            evaluation.texts(tiny, items)
        layers = applied.routing().items()
        off[temperature] = max(abs(kept[name]["entropy"] - layer.entropy) for name, layer in layers)
    # asked without candidates: not quite the same tokens
    assert all(off[chosen] < 0.5 * off[other] for other in off if other != chosen)


def test_a_base_that_was_asked_other_items_is_refused(finished, tiny, tmp_path):
    store, steps = finished
    step = next(step for step in steps["quick"] if step.library)
    plan = Plan()
    plan.include(plan_of("quick"))
    (item, *_) = plan.input(step.reading.items)
    other = plan.add_input([{**item, "id": "never asked"}])
    changed = replace(step, reading=replace(step.reading, items=other))
    store.add_inputs(plan.inputs, plan.specs)
    context = Context(store, lambda: tiny)
    with pytest.raises(ValueError, match="was not asked 'never asked'"):
        changed.compute(context, tmp_path)


def test_a_library_is_read_under_its_names_in_its_order(finished):
    store, steps = finished
    step = next(step for step in steps["quick"] if len(step.library) == 2)
    context = Context(store)
    assert [adapter.name for adapter in read_library(context, step.library)] == list(step.library)
    assert read_library(context, {}) == []
