"""The named experiments: what they plan, and one of each kind of cell computed on a tiny random model."""

import functools
import gzip
import json
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from llm_experiments.adapters.peft_files import read
from llm_experiments.domains.two_hop.rendering import FIRST, SECOND, STEP_BY_STEP, THEREFORE
from llm_experiments.domains.two_hop.templates import SIGNATURES, templates
from llm_experiments.editing.chains import unrelated
from llm_experiments.editing.step import REFERENCE, UNRELATED, Edit
from llm_experiments.embedded.corpus import BaseWorld
from llm_experiments.engine.context import Context
from llm_experiments.engine.local import run
from llm_experiments.engine.steps import Plan
from llm_experiments.engine.store import Store
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.two_hop import ARROW, EXPERIMENTS, UNIFORM, Base, Planner
from llm_experiments.keep import keep
from llm_experiments.merges import merging
from llm_experiments.models.load import load
from llm_experiments.models.sources import EMBEDDED
from llm_experiments.steps import (
    Ask,
    RandomAdapter,
    SceneRef,
    Sweep,
    TrainAdapter,
    best_temperature,
    read_examples,
    read_library,
    regauged,
    with_temperature,
)
from results.tables import read_file
from tests.tiny_models import tiny_qwen2
from toytransformer.compositions import SpecError, read_jsonl, write_jsonl
from toytransformer.prediction import predict
from toytransformer.regimes import FullLimit

BASE = Base("tiny", "0" * 16)
TINY = replace(
    PROFILES["small"],
    facts=2,
    bridge_facts=2,
    library_facts=2,
    train=(0, 1),
    dev_facts=1,
    temperatures=(0.3, 0.1),  # and not 1, which a rule takes when nothing is chosen
    fit_facts=1,
    fit_templates=2,
    relabellings=1,
    edited_facts=2,
    training=replace(PROFILES["small"].training, steps=2, batch=4, rank=2, base_dtype=None),
)


@functools.cache
def plan_of(name, seeds=(0,)):
    return EXPERIMENTS[name].plan(BASE, TINY, seeds)


class Seen:
    """A step of a plan with what it names in place of the names: scene, texts, other steps."""

    def __init__(self, plan, address):
        self.plan, self.step = plan, plan.steps[address]

    def __getattr__(self, name):
        value = getattr(self.step, name)
        if isinstance(value, SceneRef):
            return value.read(self.plan)
        if name in ("examples", "checks", "fit"):
            return value and read_examples(self.plan, value)
        if name in ("library", "of", "temperature", "base"):
            addresses = value if name == "library" else () if value is None else (value,)
            steps = tuple(Seen(self.plan, address) for address in addresses)
            return steps if name == "library" else steps[0] if steps else None
        return value


def seen(plan):
    """What the plan wants."""
    return [Seen(plan, address) for address in plan.wanted]


def in_order(steps):
    """These steps and all they need."""
    whole = Plan()
    for step in steps:
        whole.include(step.plan)
    whole.wanted = dict.fromkeys(step.address for step in steps)
    return [Seen(whole, step.address) for step in whole.order()]


def planned(name, seeds=(0,)):
    return seen(plan_of(name, seeds))


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
    """Some cells of every kind, computed into one store."""
    store = Store(tmp_path_factory.mktemp("run"))
    cells = {
        "quick": planned("quick"),
        "table2": [cell for cell in planned("table2") if cell.fit][:1],
        "gauge": [
            cell for cell in planned("gauge") if cell.scene.composition.merge.rule in ("mean", "linear")
        ],
        "edits": planned("edits")[:1],
        "random": [c for c in planned("bridge") if c.scene.regime.get("control") == "random"],
    }
    order = in_order([cell for group in cells.values() for cell in group])
    wanted = [cell.address for cell in order]
    summary = run(order[0].plan, store, Context(store, lambda: tiny), wanted=wanted, progress=False)
    assert not summary.failed, summary.failed
    return store, cells


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_plan_is_the_same_every_time_and_names_each_cell_once(name):
    first, again = planned(name), seen(EXPERIMENTS[name].plan(BASE, TINY, (0,)))
    addresses = [cell.address for cell in first]
    assert addresses == [cell.address for cell in again]
    assert len(set(addresses)) == len(addresses) > 0
    labels = [cell.label for cell in first]
    assert len(set(labels)) == len(labels), "two cells that differ would print the same line"


def test_seeds_add_cells_and_change_none():
    one, two = ({cell.address for cell in in_order(planned("quick", seeds))} for seeds in ((0,), (0, 1)))
    assert one <= two
    one, two = ({cell.address for cell in in_order(planned("bridge", seeds))} for seeds in ((0,), (0, 1)))
    assert one < two
    for seeds in ((), (0, 0)):
        with pytest.raises(SpecError, match="seeds"):
            planned("quick", seeds)


def test_another_model_or_recipe_shares_no_result():
    here = {cell.address for cell in in_order(planned("bridge"))}
    other_model = seen(EXPERIMENTS["bridge"].plan(replace(BASE, digest="1" * 16), TINY, (0,)))
    assert not here & {cell.address for cell in in_order(other_model)}
    longer = replace(TINY, training=replace(TINY.training, steps=3))
    retrained = in_order(seen(EXPERIMENTS["bridge"].plan(BASE, longer, (0,))))
    shared = {cell.scene.regime["control"] for cell in retrained if cell.address in here}
    assert shared == {"base"}


def test_experiments_share_the_adapters_they_have_in_common():
    plan = Planner(BASE, TINY, (0,))
    hop1, hop2 = plan.library(plan.setup(0, "R"), 0)
    assert plan.library(plan.setup(4, "R"), 0)[1].address == hop2.address
    assert plan.library(plan.setup(5, "R"), 0)[0].address == hop1.address
    assert plan.library(plan.setup(4, "R"), 0)[0].address != hop1.address
    fake, half = (plan.library(plan.setup(0, dataset), 0) for dataset in "FH")
    assert fake[0].address == half[0].address  # H differs from F in its places only
    assert fake[1].address != half[1].address
    table7 = {cell.address for cell in in_order(planned("table7"))}
    assert {cell.address for cell in in_order(planned("fig1"))} <= table7


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_step_travels_and_holds_no_text(name):
    plan = plan_of(name)
    for step in plan.order():
        sent = pickle.dumps(step)
        assert len(sent) < 4000, step.label
        there = pickle.loads(sent)
        assert there == step and there.address == step.address and there.document == step.document
        lines = [line for ref in step.texts if ref in plan.inputs for line in plan.input(ref)]
        named = [text for line in lines for text in (line["names"].values() if "names" in line else line[:2])]
        assert not [text for text in named if " " in text and text.encode() in sent]


def test_a_step_computes_in_another_process_from_the_store_alone(finished, model_folder, tmp_path):
    store, cells = finished
    base = next(cell for cell in cells["quick"] if not cell.library).step
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
    rows = [read_jsonl(each.results(base.address) / "rows.jsonl") for each in (store, there)]
    assert rows[0] == rows[1] and rows[0]


def test_controls_stand_beside_every_claim():
    for name in ("table1", "table2", "table7", "table8", "table9", "survival", "relabel", "gauge"):
        controls = {cell.scene.regime.get("control") for cell in planned(name) if cell.kind == "answers"}
        assert controls >= {"base", "hop1", "hop2", "oracle", "mixed", "joint", "random"}, name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_two_cells_have_rows_that_nothing_tells_apart(name):
    told = []
    for cell in (cell for cell in in_order(planned(name)) if cell.kind == "answers"):
        spec = cell.scene.composition
        library = [adapter.name for adapter in spec.adapters] if cell.library else []
        told.append(repr((spec.name, spec.setting, library, spec.merge, cell.scene.lexicon.dataset,
                          sorted(cell.scene.regime.items()))))  # fmt: skip
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_name_the_adapters_that_answer(name):
    for cell in (cell for cell in planned(name) if cell.kind == "answers" and cell.library):
        experts = [adapter.of if adapter.kind == "random-adapter" else adapter for adapter in cell.library]
        named = [adapter.name for adapter in cell.scene.composition.adapters]
        assert [expert.title.partition(" of ")[0] for expert in experts] == named, cell.label


def test_table1_has_every_setup_under_both_forms_of_both_routings():
    cells = [cell for cell in planned("table1") if "control" not in cell.scene.regime]
    found = {(cell.scene.composition.name, cell.scene.composition.merge.rule) for cell in cells}
    assert found == {(f"setup-{k}", rule) for k in range(9) for rule in UNIFORM + ARROW}
    datasets = {cell.scene.composition.name: cell.scene.lexicon.dataset for cell in cells}
    assert datasets.pop("setup-1") == "F" and set(datasets.values()) == {"R"}
    for cell in cells:
        assert (cell.temperature is not None) == (cell.scene.composition.merge.rule in ARROW)


def test_contrast_changes_one_thing_at_a_time():
    """Libraries are those of the other experiments, or differ from them in what their rows say."""
    shared = {cell.address for cell in in_order(planned("bridge"))}
    asked = [cell for cell in planned("contrast") if "control" not in cell.scene.regime]
    for cell in asked:
        changed = {key: cell.scene.regime[key] for key in ("initial_a", "steps") if key in cell.scene.regime}
        for adapter in cell.library:
            assert {key: getattr(adapter.training, key) for key in changed} == changed
            assert changed or adapter.address in shared
    assert len({repr(sorted(cell.scene.regime.items())) for cell in asked}) == 4


def test_relabellings_retrain_adapter_1_alone():
    relabelled = [cell for cell in planned("relabel") if "relabelling" in cell.scene.regime]
    cells = [cell for cell in relabelled if len(cell.library) == 2]
    by_draw = {}
    for cell in cells:
        key = (cell.scene.lexicon.dataset, cell.scene.regime["relabelling"])
        by_draw.setdefault(key, set()).add(tuple(adapter.address for adapter in cell.library))
    assert all(len(libraries) == 1 for libraries in by_draw.values())
    for dataset in "FR":
        ((plain,), (other,)) = (by_draw[dataset, draw] for draw in (0, 1))
        assert plain[1] == other[1]
    assert any(by_draw[dataset, 0] != by_draw[dataset, 1] for dataset in "FR")


def test_every_measured_composition_can_be_predicted_under_the_same_hash(finished):
    store, cells = finished
    for cell in (*cells["quick"], *cells["gauge"]):
        rows = read_jsonl(store.results(cell.address) / "rows.jsonl")
        composition = cell.scene.composition
        predicted = predict(composition, FullLimit()).records() if cell.library else ()
        assert {row.spec_hash for row in rows} == {composition.spec_hash}
        asked = {(row.prompt, row.decode, row.group, row.correct, row.bridge) for row in rows}
        for row in predicted:
            assert (row.prompt, row.decode, row.group, row.correct, row.bridge) in asked
        assert len(rows) == len(composition.questions) * len(cell.scene.templates)


def test_rows_say_what_was_merged_how_and_on_what(finished, tiny):
    store, cells = finished
    for cell in cells["quick"]:
        rule = cell.scene.composition.merge.rule
        for row in read_jsonl(store.results(cell.address) / "rows.jsonl"):
            assert row.rule == rule and row.source == tiny.id and row.regime["model"] == tiny.digest
            assert len(row.adapters) == len(cell.library)
            assert row.text is not None and row.question
            assert ("temperature" in row.regime) == (rule in ARROW)
            if rule in ARROW:
                sweep = json.loads((store.results(cell.temperature.address) / "sweep.json").read_text())
                assert row.regime["temperature"] == sweep["chosen"] == best_temperature(sweep["sweep"])
                assert [r["temperature"] for r in sweep["sweep"]] == list(TINY.temperatures)
                assert row.spectral_gap is not None
            if row.group == "two-hop" and row.decode == "direct":
                assert row.logprobs


def test_an_adapter_cell_is_an_ordinary_adapter_checked_on_its_own_task(finished):
    store, cells = finished
    trained = [cell for cell in in_order(cells["quick"]) if isinstance(cell.step, TrainAdapter)]
    assert trained
    for cell in trained:
        folder = store.results(cell.address)
        assert read(folder / "adapter").modules
        own = json.loads((folder / "metrics.json").read_text())["own_task"]
        assert own["items"] == len(cell.checks) > 0
        assert {example.template for example in cell.checks}.isdisjoint(e.template for e in cell.examples)


def test_random_controls_have_the_norms_of_the_experts(finished):
    store, cells = finished
    controls = [cell for cell in in_order(cells["random"]) if isinstance(cell.step, RandomAdapter)]
    assert controls
    for control in controls:
        pair = [read(store.results(cell.address) / "adapter").modules for cell in (control.of, control)]
        for name, lora in pair[0].items():
            norms = [torch.linalg.norm(each.delta().double()) for each in (lora, pair[1][name])]
            # float32 factors of rank r: the product's norm is exact to a few roundings
            assert torch.isclose(*norms, rtol=16 * torch.finfo(torch.float32).eps, atol=0)
            assert not torch.allclose(lora.delta(), pair[1][name].delta())


@pytest.mark.parametrize("gauge", ["flipped", "svd", "random:0"])
def test_a_gauge_moves_the_factors_and_not_the_product(finished, gauge):
    store, cells = finished
    adapter = next(c for c in in_order(cells["gauge"]) if isinstance(c.step, TrainAdapter))
    weights = read(store.results(adapter.address) / "adapter")
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
    store, cells = finished
    for cell in cells["table2"]:
        asked = {str(question.prompt) for question in cell.scene.composition.questions}
        assert cell.fit and not asked & {str(example.fact.prompt) for example in cell.fit}
        details = json.loads((store.results(cell.address) / "details.json").read_text())
        assert details["fitted"]["loss"] <= details["fitted"]["loss_start"]


def test_the_embedded_world_has_people_enough_for_the_edits():
    world = BaseWorld.read(EMBEDDED / "world.json")
    cells = seen(EXPERIMENTS["edits"].plan(Base("embedded", "0" * 16, world), PROFILES["embedded"], (0,)))
    assert {cell.scene.lexicon.dataset for cell in cells} == {"F", "R"}
    for cell in cells:
        found = unrelated(cell.scene.lexicon, REFERENCE + UNRELATED, seed=cell.seed, base_world=world)
        assert len(set(found)) == REFERENCE + UNRELATED


def test_edit_rows_put_the_toy_beside_every_layer(finished):
    store, cells = finished
    (cell,) = cells["edits"]
    assert isinstance(cell.step, Edit)
    rows = [json.loads(line) for line in (store.results(cell.address) / "edits.jsonl").open()]
    overlaps = [row for row in rows if row["kind"] == "overlap"]
    assert {row["layer"] for row in overlaps} == {0, 1}
    assert all("toy_c1_own" in row and "toy_c2_own" in row for row in overlaps)
    tests = [row for row in rows if row["kind"] == "over layers"]
    assert {row["metric"] for row in tests} == {row["metric"] for row in overlaps}
    edits = [row for row in rows if row["kind"] == "edit"]
    assert {row["whitened"] for row in edits} == {False, True}
    assert all(row["shift_over_bound"] <= 1 for row in edits)


def test_temperature_prefers_chains_then_hops_then_heat():
    def row(temperature, steps, hops):
        return {"temperature": temperature, "steps": steps, "hops": hops}

    assert best_temperature([row(1.0, 0.2, 0.9), row(0.1, 0.3, 0.1)]) == 0.1
    assert best_temperature([row(1.0, 0.2, 0.5), row(0.1, 0.2, 0.6)]) == 0.1
    assert best_temperature([row(0.1, 0.0, 0.0), row(1.0, 0.0, 0.0)]) == 1.0


def test_temperature_is_chosen_on_templates_and_chains_kept_from_the_test():
    for cell in in_order(planned("quick")):
        if isinstance(cell.step, Sweep):
            assert set(cell.scene.templates).isdisjoint(TINY.test)
            assert set(cell.scene.templates).isdisjoint(TINY.train)
            assert {q.prompt.entity for q in cell.scene.composition.questions} <= {"x1", "y1"}
            assert all(isinstance(need.step, TrainAdapter) for need in cell.library)
        if isinstance(cell.step, Ask):
            assert cell.scene.templates == TINY.test


def test_kept_files_hold_every_row_adapter_and_sweep(finished, tmp_path):
    store, cells = finished
    everything = [cell for group in cells.values() for cell in group]
    order = in_order(everything)
    store.add_run({"experiment": "all"}, [{"address": cell.address, "label": cell.label} for cell in order])
    paths = keep(store.folder, "tiny", tmp_path)
    assert [path.name for path in paths] == [f"tiny{end}.jsonl.gz" for end in ("", "-edits", "-cells")]
    rows = read_file(paths[0])
    answered = [cell for cell in order if cell.kind == "answers"]
    assert len(rows) == sum(
        len(cell.scene.composition.questions) * len(cell.scene.templates) for cell in answered
    )
    kept = [json.loads(line) for line in gzip.decompress(paths[2].read_bytes()).splitlines()]
    by_kind = {
        kind: [row["cell"] for row in kept if row["kind"] == kind] for kind in ("adapter", "temperature")
    }
    for kind, found in by_kind.items():
        assert found == [cell.address for cell in order if cell.kind == kind] and found
    assert all(0 <= row["own_task"]["share"] <= 1 for row in kept if row["kind"] == "adapter")
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in keep(store.folder, "tiny", tmp_path)] == before
    # rows of another seed are there already: they stay, and this folder's are not taken twice
    others = [replace(row, regime={**row.regime, "seed": 7}) for row in rows if "seed" in row.regime]
    write_jsonl(tmp_path / "rows.jsonl", [*others, *rows[:5]])
    paths[0].write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    assert read_file(keep(store.folder, "tiny", tmp_path)[0]) == [*others, *rows]


def test_how_arrow_routed_is_kept(finished):
    store, cells = finished
    routed = [cell for cell in cells["quick"] if cell.temperature is not None]
    assert routed
    for cell in routed:
        layers = json.loads((store.results(cell.address) / "details.json").read_text())["routing"]
        assert layers
        for layer in layers.values():
            # two weights of each token, float64 sums: their means add up to one
            assert sum(layer["weights"]) == pytest.approx(1, abs=1e-6) and layer["tokens"] > 0


def test_arrow_routes_at_the_temperature_that_was_chosen(finished, tiny):
    store, cells = finished
    cell = next(cell for cell in cells["quick"] if cell.temperature is not None)
    context = Context(store, lambda: tiny)
    library = read_library(context, cell.scene, cell.step.library)
    kept = json.loads((store.results(cell.address) / "details.json").read_text())["routing"]
    chosen = json.loads((store.results(cell.temperature.address) / "sweep.json").read_text())["chosen"]
    off = {}
    for temperature in (*TINY.temperatures, 1.0):
        merge = with_temperature(cell.scene.composition.merge, temperature)
        with merging.apply(tiny, library, merge, seed=cell.seed, statistics=True) as applied:
            cell.scene.records(context, split="test")
        layers = applied.routing().items()
        off[temperature] = max(abs(kept[name]["entropy"] - layer.entropy) for name, layer in layers)
    # asked without the base's answers among the candidates: not quite the same tokens
    assert all(off[chosen] < 0.1 * off[other] for other in off if other != chosen)


def test_a_library_of_another_size_than_the_compositions_is_refused(finished):
    store, cells = finished
    cell = next(cell for cell in cells["quick"] if len(cell.library) == 2)
    with pytest.raises(ValueError, match="argument"):
        read_library(Context(store), cell.scene, cell.step.library[:1])
    assert read_library(Context(store), cell.scene, ()) == []
