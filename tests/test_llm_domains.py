"""Any domain goes through training, merging, asking, scoring and tables: one made here, and all registered.

Nothing is changed anywhere for the domain of this file, which adds small numbers.
"""

import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner
from matplotlib.text import Text
from tiny_models import tiny_qwen2

from figures import registry, report
from figures.__main__ import main as figures
from figures.__main__ import read as read_measured
from figures.report.ledger import COLUMNS
from llm_experiments import keep
from llm_experiments.adapters.recipe import Training
from llm_experiments.domains.task import (
    DOMAINS,
    Example,
    Task,
    TrainingSet,
    domain,
    keep_examples,
    keep_items,
    read_items,
)
from llm_experiments.engine.context import Context
from llm_experiments.engine.local import run
from llm_experiments.engine.steps import Plan
from llm_experiments.engine.store import Store
from llm_experiments.experiments.registry import EXPERIMENTS, experiment
from llm_experiments.experiments.sizes import Profile
from llm_experiments.experiments.study import DEV_NAMES, Base, Study
from llm_experiments.models.load import load
from llm_experiments.registry import Registry, RegistryError
from llm_experiments.scoring import SCORERS, Score, scorer
from results import forms, frame, tables
from results.rows import Item
from toytransformer.compositions import Merge

PROFILE = Profile(
    "tiny",
    "two steps",
    Training(steps=2, batch=4, rank=2, learning_rate=1e-3),
    temperatures=(1.0, 0.1),
    sizes={"sums": 3},
)


class LastNumber:
    """Reads the last number of a text. Made from {"unit"}, which may stand behind it."""

    def __init__(self, context):
        self.unit = context["unit"]

    def base_answer(self, item, text):
        return self._last(text)

    def name(self, answer):
        return f"{answer} {self.unit}"

    def score(self, item, text, base_answer):
        answer = self._last(text)
        correct, old = answer == item.roles["correct"], answer is not None and answer == base_answer
        outcome = "correct" if correct else "old" if old else "wrong" if answer else "no number"
        off = None if answer is None else abs(int(answer) - int(item.roles["correct"]))
        return Score(outcome, answer, {"off": off, "exact": text == item.target})

    def _last(self, text):
        return (re.findall(r"\d+", text) or [None])[-1]


def sums(inputs, *, numbers=3, names=0):
    """Adding one and adding two, as adapters; asked is adding three."""

    def item(first, second, number, ask="direct"):
        return Item(
            id=f"{first}+{second}/{number}",
            cluster=str(first),
            group="sums",
            ask=ask,
            question=f"What is {first} and {second}?",
            target=f"It is {first + second} apples.",
            roles={"correct": str(first + second)},
            extra={"wording": number},
        )

    def taught(name, added):
        examples = [Example(f"Add {added} to {n}.", f"It is {n + added} apples.") for n in range(numbers)]
        own = [item(n, added, 1) for n in range(numbers)]
        return TrainingSet(name, keep_examples(inputs, examples), keep_items(inputs, own), context)

    context = inputs.add_input([{"unit": "apples"}])
    steps = [item(n, 3, 1, "steps") for n in range(numbers)]
    return Task(
        domain="sums",
        name="three",
        scorer="last-number",
        items=keep_items(inputs, [*(item(n, 3, 0) for n in range(numbers)), *steps]),
        dev=keep_items(inputs, [item(n, 1 + n % 2, 2) for n in range(numbers)]),
        training={name: taught(name, added) for added, name in enumerate(("one", "two"), start=1)},
        context=context,
        names=names,
        setting={"numbers": numbers},
        chosen_by="single sums",
    )


def adding(study):
    """The base, each adapter alone, both under several rules, Arrow with a temperature, random ones."""
    size = study.profile.sizes["sums"]
    task, dev = (sums(s.plan, numbers=size, names=s.names) for s in (study, study.other))
    base = study.ask_base(task)
    yield base
    common = {"base": study.plan.add(base), "layers": "mlp"}
    for seed in study.seeds:
        library, other = (
            {name: s.train(t, name, study.profile.training, seed, i) for i, name in enumerate(t.training)}
            for s, t in ((study, task), (study.other, dev))
        )
        for rule in ("sum", "mean", "ties"):
            yield study.ask(task, library, Merge(rule), seed=seed, **common)
        arrow = Merge("arrow-products")
        sweep = study.sweep(dev, other, arrow)
        yield study.ask(task, library, arrow, seed=seed, sweep=sweep, **common)
        for name, address in library.items():
            yield study.ask(task, {name: address}, Merge("sum"), seed=seed, control=name, **common)
        randoms = {name: study.random(address, seed) for name, address in library.items()}
        yield study.ask(task, randoms, Merge("mean"), seed=seed, control="random", **common)


@pytest.fixture(scope="module")
def registered():
    """The domain, its scorer and its experiment, entered for the tests of this file."""
    list(DOMAINS), list(EXPERIMENTS)  # read the folders first, so that their order is as always
    domain("sums", about="adding small numbers")(sums)
    outcomes = ("correct", "old", "wrong", "no number")
    scorer("last-number", outcomes=outcomes, marks={"off": "by how much it is off", "exact": "word by word"})(
        LastNumber
    )
    experiment("adding", about="adding small numbers", source="nowhere", needs=("sums",))(adding)
    yield
    DOMAINS.remove("sums")
    SCORERS.remove("last-number")
    EXPERIMENTS.remove("adding")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load(str(tiny_qwen2(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def measured(registered, tiny, tmp_path_factory):
    """A run's folder with the experiment's rows on two seeds, and its plan."""
    store = Store(tmp_path_factory.mktemp("run"))
    plan = EXPERIMENTS["adding"].plan(Base(tiny.id, tiny.digest), PROFILE, (0, 1))
    listed = [{"address": step.address, "label": step.label} for step in plan.order()]
    store.add_run({"experiment": "adding", "model": tiny.id}, listed)
    summary = run(plan, store, Context(store, lambda: tiny), progress=False)
    assert not summary.failed, summary.failed
    return store, plan


def test_a_new_domain_is_measured_without_a_change_elsewhere(measured):
    store, _ = measured
    read = frame.read(store.folder)
    assert set(read.outcomes) == {"correct", "old", "wrong", "no number"}
    assert set(read.marks) == {"off", "exact"}
    infos = list(read.cells.values())
    assert {info.domain for info in infos} == {"sums"} and {info.spec_hash for info in infos} == {None}
    assert {info.control for info in infos} == {None, "base", "one", "two", "random"}
    arrow = [info for info in infos if info.rule == "arrow-products"]
    for info in arrow:
        assert info.chosen["temperature"] in PROFILE.temperatures
        assert (info.chosen["chosen_by"], info.chosen["chosen_names"]) == ("single sums", DEV_NAMES)
    assert len(arrow) == 2 and len(infos) == 1 + 2 * 7
    assert len(read.rows) == len(infos) * 6
    for info in infos:
        assert (read.own_task(info) is None) == (info.control in ("base", "random"))


def test_its_rows_stand_in_tables(measured):
    store, _ = measured
    cells = frame.read(store.folder).groups()
    entries = tables.entries(cells)
    assert {entry.prediction for entry in cells} == {None}
    compared = tables.comparisons(cells)
    rules = {test.second for test in compared if test.kind == "sums"}
    assert any("arrow-products" in rule for rule in rules), rules
    markdown = forms.markdown(forms.grids(entries, compared))
    for shown in (
        "three",
        "arrow-products",
        "ties",
        "sums: outcomes in %",
        "compared on the same questions",
    ):
        assert shown in markdown


def test_its_cells_are_drawn(measured, tmp_path):
    store, _ = measured
    done = CliRunner().invoke(figures, ["all", "--from", str(store.folder), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    drawn = {name for name, figure in registry.figures().items() if figure.measured} & {
        path.stem for path in tmp_path.glob("*.svg")
    }
    assert drawn == {"libraries", "transfer"} and done.output.count("not drawn: ") > 5
    told = registry.figures()["libraries"]
    figure = told.from_data(read_measured([store.folder], None, False))
    said = {text.get_text() for text in figure.findobj(Text)}
    assert {"sums: three, " + frame.read(store.folder).groups()[0].info.base, "one + two, ties"} <= said


def test_its_cells_stand_in_the_report(measured, tmp_path):
    store, _ = measured
    ledger = tmp_path / "ledger.json"
    ledger.write_text(json.dumps([dict.fromkeys(COLUMNS, "") | {"claim": "one: holds", "provenance": {}}]))
    page = report.render(report.gather(ledger, runs=[store.folder]))
    assert "<th>no number</th>" in page and page.count("one + two</td>") == 2 * 4 + 2
    assert "arrow-products" in page and "Every measured cell" in page


def test_its_rows_are_kept_and_read_again(measured, tmp_path):
    store, _ = measured
    paths = keep.keep(store.folder, "sums", tmp_path)
    again = frame.read(tmp_path / "sums")
    assert again.rows.equals(frame.read(store.folder).rows)
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in keep.keep(store.folder, "sums", tmp_path)] == before


def small_runs(study, task):
    """All that is done with any task: the base, a merge, a control."""
    base = study.ask_base(task)
    yield base
    training = replace(study.profile.training, rank=2)
    library = {name: study.train(task, name, training, 0, i) for i, name in enumerate(task.training)}
    common = {"base": study.plan.add(base), "seed": 0, "layers": "mlp"}
    yield study.ask(task, library, Merge("sum"), **common)
    randoms = {name: study.random(address, 0) for name, address in library.items()}
    yield study.ask(task, randoms, Merge("mean"), control="random", **common)
    if task.dev is not None:
        arrow = Merge("arrow-products")
        yield study.ask(task, library, arrow, sweep=study.sweep(task, library, arrow), **common)


@pytest.mark.parametrize("name", DOMAINS)
def test_every_domain_is_measured_on_three_items(name, tiny, tmp_path):
    plan = Plan()
    whole = DOMAINS[name].small_task(plan)
    first = {ref: keep_items(plan, read_items(plan, ref)[:3]) for ref in (whole.items, whole.dev) if ref}
    task = replace(whole, items=first[whole.items], dev=first.get(whole.dev))
    study = Study(Base(tiny.id, tiny.digest), PROFILE, (0,), 0, plan)
    plan.want(*small_runs(study, task))
    store = Store(tmp_path)
    store.add_run({"experiment": name}, [{"address": s.address, "label": s.label} for s in plan.order()])
    summary = run(plan, store, Context(store, lambda: tiny), progress=False)
    assert not summary.failed, summary.failed
    read = frame.read(tmp_path)
    assert len(read.rows) == 3 * len(read.cells) and len(read.cells) >= 3
    assert set(read.outcomes) == set(task.outcomes) and set(read.marks) <= set(task.marks)
    assert tables.entries(read.groups())


def test_names_are_entered_once_and_unknown_ones_listed():
    things = Registry("thing")
    things.add("a", 1)
    assert list(things) == ["a"] and len(things) == 1 and "a" in things and "b" not in things
    with pytest.raises(RegistryError, match="two things 'a'"):
        things.add("a", 2)
    with pytest.raises(RegistryError, match="there is no thing 'b': choose a"):
        things["b"]
    with pytest.raises(RegistryError, match="there is no domain 'nobody'"):
        DOMAINS["nobody"]
    assert "entities" in SCORERS and "two-hop" in DOMAINS
