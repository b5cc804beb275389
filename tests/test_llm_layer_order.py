"""The layer-order experiments: what they plan, and that patches put what they say where they say."""

import json
import math
from dataclasses import replace

import pytest
import torch

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.late_entry import Guard, LateEntry, Line, train_late
from llm_experiments.adapters.recipe import Training, TrainingError
from llm_experiments.asking import patching
from llm_experiments.asking.patching import PatchingError
from llm_experiments.domains.two_hop.layer_order import EXPECTED, PATCHES, arrangements
from llm_experiments.domains.two_hop.pages import TwoHopRows
from llm_experiments.domains.two_hop.patching import SOURCES, AskPatched, Patch
from llm_experiments.domains.two_hop.rendering import FIRST, SECOND, STEP_BY_STEP, THEREFORE
from llm_experiments.domains.two_hop.templates import SIGNATURES, templates
from llm_experiments.engine.context import Context
from llm_experiments.engine.local import run
from llm_experiments.engine.store import Store
from llm_experiments.experiments.registry import EXPERIMENTS
from llm_experiments.merges.merging import apply
from llm_experiments.models.choice import Arrangement
from llm_experiments.models.load import load
from llm_experiments.pages import DATA
from llm_experiments.steps.adapters import RandomAdapter, TrainAdapter, TrainLate
from llm_experiments.steps.asking import Ask
from results.rows import CellInfo, Row
from tests.test_llm_experiments import BASE, TINY, needed, plan_of, wanted
from tests.tiny_models import tiny_qwen2
from toytransformer.compositions import Merge

NAMES = ("layer-order", "layer-order-cuts", "layer-order-late", "layer-patching")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A model to which the words of the templates are single tokens."""
    texts = [text for word in SIGNATURES for t in templates((word,)) for text in (t.question, t.answer)]
    lines = [*texts, FIRST, SECOND, STEP_BY_STEP, THEREFORE] * 5
    return load(str(tiny_qwen2(tmp_path_factory.mktemp("model"), lines, vocabulary=900)))


# ---- plans ----


@pytest.mark.parametrize("name", NAMES)
def test_each_adapter_is_trained_in_the_layers_that_its_cell_names(name):
    plan = plan_of(name)
    cells = [step for step in wanted(name, Ask) if step.library]
    assert cells
    for step in cells:
        arrangement = Arrangement.parse(step.layers)
        assert list(arrangement.choices) == list(step.library)
        for adapter, address in step.library.items():
            trained = plan.steps[address]
            if isinstance(trained, RandomAdapter):
                assert step.control == "random"
                trained = plan.steps[trained.of]
            assert trained.training.layers == str(arrangement.choices[adapter])


def test_every_arrangement_has_an_expectation_and_is_asked_under_the_plain_sum():
    planned = arrangements()
    assert {one.expected for one in planned} == set(EXPECTED)
    assert len({str(one.layers) for one in planned}) == len({one.name for one in planned}) == len(planned)
    for name in NAMES[:2]:
        plain = [s.layers for s in wanted(name, Ask) if s.control is None and s.merge == Merge("sum")]
        assert plain == [str(one.layers) for one in planned if one.experiment == name]


def test_what_enters_late_is_told_of_no_chain():
    """Neither x nor the other adapter: strangers are nobody that the composition names."""
    plan = plan_of("layer-order-late")
    (step,) = needed("layer-order-late", TrainLate)
    context = plan.input(wanted("layer-order-late", Ask)[0].reading.context)[0]
    assert step.needs == () and step.guards in plan.inputs and step.training.layers == "mlp@upper half"
    lines, examples = plan.input(step.entries), plan.input(step.examples)
    assert [(line["question"], line["answer"]) for line in lines] == [
        (example["question"], example["answer"]) for example in examples
    ]
    for line in lines:
        assert line["stranger_answer"].startswith(line["begun"]) and line["name"] in line["question"]
        people = [n for token, n in context["names"].items() if context["kinds"].get(token) == "person"]
        assert people and not any(name in line["stranger_question"] for name in people)


def test_every_adapter_is_asked_alone_and_stands_beside_the_base():
    for name in NAMES[:2]:
        steps = wanted(name, Ask)
        single = {step.layers for step in steps if len(step.library) == 1}
        trained = {f"{s.title.split()[0]}={s.training.layers}" for s in needed(name, TrainAdapter)}
        assert single == trained and any(step.control == "base" for step in steps)


def test_only_direct_questions_are_asked_and_no_cell_is_one_of_setup_0():
    asked = {step.about.task for name in NAMES for step in wanted(name, Ask)}
    assert asked == {"layer-order", "layer-patching"}
    plan = plan_of("layer-patching")
    for step in wanted("layer-patching", AskPatched):
        items = plan.input(step.reading.items)
        assert {(item["group"], item["ask"]) for item in items} == {("two-hop", "direct")}
        assert [item["id"] for item in items] == [pair["item"] for pair in plan.input(step.pairs)]


def test_pairs_begin_the_answers_that_are_right():
    plan = plan_of("layer-patching")
    step = wanted("layer-patching", AskPatched)[0]
    for item, pair in zip(plan.input(step.reading.items), plan.input(step.pairs), strict=True):
        assert item["question"] == pair["question"] and item["target"].startswith(pair["begun"])
        assert pair["donor_name"] in pair["donor_question"] and pair["name"] in pair["question"]


# ---- patches ----

QUESTION, BEGUN = "Where does Ann live?", "Ann lives in "


def tokens(loaded, question=QUESTION, begun=BEGUN):
    return patching.begun_prompt(loaded, question, begun)


def logits_behind(loaded, sequence):
    with torch.no_grad():
        return loaded.model(input_ids=torch.tensor([sequence])).logits[0, -1]


@pytest.mark.parametrize("after", [0, 1])
def test_its_own_activations_change_nothing(loaded, after):
    given = tokens(loaded)
    own = patching.residual(loaded, given, after)
    plain = patching.written(loaded, given, after, {}, 6)
    assert patching.written(loaded, given, after, dict(enumerate(own)), 6) == plain
    greedy = list(given)  # by hand
    for _ in range(6):
        token = int(logits_behind(loaded, greedy).argmax())
        if token in patching.end_tokens(loaded):
            break
        greedy.append(token)
    assert greedy[len(given) :] == plain


def test_another_questions_last_output_gives_its_answer(loaded):
    """Behind the last block a position's output is all that its logits depend on."""
    given, other = tokens(loaded), tokens(loaded, "Who is Bob's spouse?", "Bob's spouse is ")
    last = len(patching.blocks(loaded.model)) - 1
    there = patching.residual(loaded, other, last)
    said = patching.written(loaded, given, last, {len(given) - 1: there[-1]}, 1)
    wanted_token = int(logits_behind(loaded, other).argmax())
    assert said == ([] if wanted_token in patching.end_tokens(loaded) else [wanted_token])


def test_a_patch_at_every_position_behind_the_first_block_is_the_other_question(loaded):
    """Of equal length: what lies above the cut sees nothing else."""
    given, other = tokens(loaded), tokens(loaded, "Where does Bob live?", "Bob lives in ")
    assert len(given) == len(other) and given != other
    there = patching.residual(loaded, other, 0)
    assert torch.equal(
        torch.tensor(patching.written(loaded, given, 0, dict(enumerate(there)), 1)),
        torch.tensor(patching.written(loaded, other, 0, {}, 1)),
    )


def pair(**changes):
    return {
        "item": "x1 R1 R2/direct/0",
        "question": "Where does Ann's spouse live?",
        "begun": "Ann's spouse lives in ",
        "name": "Ann",
        "donor_question": "Where does Bob live?",
        "donor_begun": "Bob lives in ",
        "donor_name": "Bob",
    } | changes


def test_patches_are_put_at_the_names_and_at_the_end(loaded):
    line = pair()
    given = patching.begun_prompt(loaded, line["question"], line["begun"])
    name = patching.name_tokens(loaded, "Ann")
    starts = patching.mentions(given, name)
    inside = {start + place for start in starts for place in range(len(name))}
    last = len(given) - 1
    for source in SOURCES:
        at = {place: set(Patch(source, place).values(loaded, line, 0)) for place in ("last", "names")}
        assert at == {"last": {last}, "names": inside} and len(starts) == 2
        assert set(Patch(source, "names and last").values(loaded, line, 0)) == inside | {last}
    own = patching.residual(loaded, given, 0)
    embedding = Patch("embedding", "last").values(loaded, line, 0)[last] - own[last]
    assert embedding.norm().item() == pytest.approx(own[last].norm().item(), rel=1e-4)


def test_what_cannot_be_patched_is_refused(loaded):
    with pytest.raises(PatchingError, match="'middle' is unknown"):
        Patch("own", "middle")
    with pytest.raises(PatchingError, match="mentions its entity 2 times, hop 2's question 1"):
        Patch("second hop", "names").values(loaded, pair(donor_begun="the home is in "), 0)
    with pytest.raises(PatchingError, match="position 99"):
        patching.written(loaded, tokens(loaded), 0, {99: torch.zeros(32)}, 1)


def test_patched_answers_are_rows_of_cells_of_their_own(loaded, tmp_path):
    plan = plan_of("layer-patching")
    steps = wanted("layer-patching", AskPatched)
    store = Store(tmp_path / "run")
    summary = run(plan, store, Context(store, lambda: loaded), progress=False)
    assert not summary.failed, summary.failed
    cells = [CellInfo.from_json((store.results(step.address) / "cells.jsonl").read_text()) for step in steps]
    assert len({cell.key for cell in cells}) == len(PATCHES) == len(steps)
    for step, cell in zip(steps, cells, strict=True):
        rows = [Row.from_json(line) for line in (store.results(step.address) / "rows.jsonl").open()]
        assert [row.item for row in rows] == [item["id"] for item in plan.input(step.reading.items)]
        assert cell.variant == {"patched": step.patch.place, "with": step.patch.source}
        assert {row.cell for row in rows} == {cell.key}


def test_kept_rows_have_a_share_for_each_draw_of_names():
    """Against the rows themselves: every draw asks as many questions."""
    layers = str(arrangements()[0].layers)
    cell = TwoHopRows(DATA / "embedded").cell("layer-order", "sum", "direct", layers=layers)
    assert len(cell.by_draw()) == len(cell.names) > 1
    assert sum(cell.by_draw()) / len(cell.names) == pytest.approx(cell.share)


# ---- late entry ----

STEPS = 100
LINES = [
    Line(
        f"Where does {name} live?",
        f"{name} lives in {place}.",
        name,
        "Where does Cat live?",
        f"Cat lives in {place}.",
        "Cat lives in ",
    )
    for name, place in (("partner", "home"), ("city", "house"))  # words of one token
]


def places(loaded, library, line):
    """Logits of the places where the name's embedding is put at the end of the stranger's question."""
    tokens = patching.begun_prompt(loaded, line.stranger_question, line.begun)
    vector = patching.embedded(loaded, patching.name_tokens(loaded, line.name)[:1])[0]

    def enter(output):
        output = output.clone()
        output[0, -1] += 0.5 * output[0, -1].norm() * vector / vector.norm()
        return output

    with apply(loaded, library, Merge("sum")), patching.hooked(patching.blocks(loaded.model)[0], enter):
        logits = logits_behind(loaded, tokens)
    return [float(logits[patching.name_tokens(loaded, place)[0]]) for place in ("home", "house")]


def test_an_adapter_that_is_entered_late_answers_by_what_enters(loaded, tmp_path):
    recipe = Training(
        rank=16,
        alpha=32,
        batch=8,
        steps=STEPS,
        learning_rate=3e-2,
        layers="all@upper half",
        dropout=0,
    )
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    guards = [Guard("Who is Cat's spouse?", "Cat's spouse is Dan.", "Cat's spouse is ")]
    out = train_late(loaded, LINES, recipe, LateEntry(), guards=guards, seed=0, out=tmp_path / "a")
    assert out["steps"] == STEPS and out["examples"] == 8 * STEPS
    assert out["loss"] < 0.5 * math.log(loaded.model.config.vocab_size)
    assert all(torch.equal(before[name], value) for name, value in loaded.model.state_dict().items())
    library = [peft_files.read(tmp_path / "a")]
    (home, other), (another, house) = (places(loaded, library, line) for line in LINES)
    assert home > other and house > another
    again = train_late(loaded, LINES, recipe, LateEntry(), guards=guards, seed=0, out=tmp_path / "b")
    assert again["loss"] == out["loss"]


def test_late_entry_that_means_nothing_is_refused(loaded, tmp_path):
    for wrong in ({"share": 0}, {"share": 0.9}, {"low": 0}, {"low": 3.0}, {"high": float("inf")}):
        with pytest.raises(TrainingError, match="share"):
            LateEntry(**wrong)
    for layers, steps, lines, words in (
        ("mlp", 1, LINES, "no block below"),
        ("mlp@upper half", None, LINES, "number of steps"),
        ("mlp@upper half", 1, [], "at least one line"),
    ):
        with pytest.raises(TrainingError, match=words):
            train_late(
                loaded, lines, Training(layers=layers, steps=steps), LateEntry(), seed=0, out=tmp_path / "c"
            )


def test_the_step_trains_and_is_checked_on_its_own_task(loaded, tmp_path):
    (step,) = needed("layer-order-late", TrainLate)
    store = Store(tmp_path / "run")
    context = Context(store, lambda: loaded)
    summary = run(plan_of("layer-order-late"), store, context, wanted=[step.address], progress=False)
    assert not summary.failed, summary.failed
    (adapter,) = map(json.loads, (store.results(step.address) / "adapters.jsonl").open())
    assert adapter["own_task"]["items"] > 0 and adapter["steps"] == TINY.training.steps


def test_another_size_shares_no_adapter():
    longer = replace(TINY, training=replace(TINY.training, steps=3))
    other = EXPERIMENTS["layer-order"].plan(BASE, longer, (0,))
    assert not {s for s in plan_of("layer-order").steps if s.kind == "adapter"} & set(other.steps)
