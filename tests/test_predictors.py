"""Predictors of measured cells: what each is given, what it says, and how agreement is counted."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from predictors import PREDICTORS, BaseModel, NoPredictionError, agreement, forms, kernel, tiers, typed
from predictors.__main__ import cli
from predictors.registry import predictor
from results import files
from toytransformer.compositions import OUTCOMES, Composition, Merge
from toytransformer.compositions.setups import setup
from toytransformer.compositions.spec import hops
from toytransformer.model_features import ModelFeatures

DATA = Path(__file__).parents[1] / "llm_experiments" / "data" / "embedded"
FACTS = 4


def made(spec, seed=0, *, sure=6.0, own=0.0, width=400):
    """Features of a base that was never there: random ones, close where prompts share tokens.

    It is sure by `sure` nats of some old answer to every single hop, and of x's own answer to x R1 R2.
    own: how close a prompt is to itself in training wordings and to that of the test.
    """
    rng = np.random.default_rng(seed)
    tokens = {}
    old = {}

    def feature(prompt):
        parts = [tokens.setdefault(token, rng.standard_normal(width)) for token in str(prompt).split()]
        return sum(parts) + own * rng.standard_normal(width)

    stored = dict.fromkeys(fact.prompt for a in spec.adapters for fact in a.stored(spec.world))
    direct = dict.fromkeys(q.prompt for q in spec.questions if q.decode == "direct")
    steps = dict.fromkeys(
        h.prompt for q in spec.questions if q.decode == "steps" for h in hops(spec.world, q.prompt)
    )
    rows = [(str(p), "stored", None) for p in stored]
    rows += [(str(p), form, 48) for form, some in (("direct", direct), ("steps", steps)) for p in some]
    values = np.stack([feature(row[0]) for row in rows])
    trained = dict.fromkeys(n for p in stored for n in (p.entity, spec.world.truth(p)))
    names = list(dict.fromkeys((*trained, *(f"old {row[0]}" for row in rows))))
    logprobs = np.full((len(rows), len(names)), -np.log(len(names)) - sure)
    for i, row in enumerate(rows):
        old[row[0]] = f"old {row[0]}"
        logprobs[i, names.index(old[row[0]])] = np.log1p(-np.exp(-sure))
    gram = values @ values.T
    scale = np.trace(gram) / len(gram)
    kinds = {
        name: "place" if name.lstrip("bridge_")[0] == "z" or "R2" in name else "person" for name in names
    }
    places = np.array([kinds[name] == "place" for name in names])
    cosines = np.where(places[:, None] == places[None, :], 0.3, 0.1) + 0.0
    np.fill_diagonal(cosines, 1.0)
    said = {f"{q.prompt}/{q.decode}/48": old.get(str(q.prompt)) for q in spec.questions}
    return ModelFeatures(
        rows=tuple(rows),
        grams={"0": gram / scale},
        sizes={"0": float(np.sqrt(scale))},
        entities=tuple(names),
        surface=tuple(names),
        unembedding={"mean centred": cosines},
        logprobs=logprobs,
        kinds=kinds,
        said=said,
        about={"model": "made", "digest": "0", "dataset": "R", "names": 0, "told": {"steps": 0.75}},
    )


@pytest.fixture(scope="module")
def spec():
    return setup(0, facts=FACTS)


@pytest.fixture(scope="module")
def base(spec):
    return BaseModel(made(spec))


# ---- the predictors ----


def test_tiers_stand_in_their_order_and_say_what_they_need():
    assert list(PREDICTORS)[:3] == ["T0", "T1", "T2"]
    assert all(one.about and one.needs for one in PREDICTORS.values())
    with pytest.raises(ValueError, match="'T0' is there already"):
        predictor("T0", "again", needs="nothing")(lambda spec, base: {})


@pytest.mark.parametrize("tier", ["T0", "T1", "T2"])
@pytest.mark.parametrize("rule", ["sum", "mean"])
def test_every_kind_of_question_gets_shares_that_sum_to_one(tier, rule, spec, base):
    shares = PREDICTORS[tier].predict(spec.with_merge(Merge(rule)), base)
    assert set(shares) == {"hop1/direct", "hop2/direct", "two-hop/direct", "two-hop/steps"}
    for said in shares.values():
        assert set(said) <= set(OUTCOMES) and sum(said.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("tier", ["T1", "T2"])
def test_without_a_base_there_is_no_prediction(tier, spec):
    with pytest.raises(NoPredictionError, match="needs what was measured of the base"):
        PREDICTORS[tier].predict(spec, None)


def test_an_adapter_alone_holds_its_facts_in_the_kernel(base):
    """Asked as trained, each fact is exactly there, whatever else was stored."""
    alone = setup(0, facts=FACTS, library=("hop1",))
    shares = kernel.kernel(alone, base)
    assert shares["hop1/direct"] == {"correct": 1.0} and "correct" not in shares["hop2/direct"]


def test_changes_exchange_the_odds_of_old_and_new(spec, base):
    """Independent route: after the change, the log-odds of the new answer are those it had against it."""
    model = base.features
    facts = spec.adapters[0].facts
    change = kernel.changes(model, facts)
    scores = model.logprobs[model.places([(str(fact.prompt), "stored", None) for fact in facts])]
    for fact, own, before in zip(facts, change, scores, strict=True):
        new, old = model.entities.index(fact.answer), int(before.argmax())
        after = before + own
        assert after.argmax() == new
        # all of q lies on one answer but for exp(-6): the odds are exchanged up to that
        assert after[new] - after[old] == pytest.approx(before[old] - before[new], rel=0.02)


def test_weights_below_one_half_lose_a_hop_of_the_kernel(spec, base):
    """The closed form's threshold: odds are exchanged, so a hop alone turns at weight one half."""
    for weight, right in ((0.45, 0.0), (0.55, 1.0)):
        alone = setup(0, facts=FACTS, library=("hop1",)).with_merge(Merge("sum", (weight,)))
        assert kernel.kernel(alone, base)["hop1/direct"].get("correct", 0.0) == right


def test_what_the_kernel_does_not_speak_of_is_said(spec, base):
    for rule, words in (("ties", "no single neurons"), ("adaptive", "fitted on examples")):
        with pytest.raises(NoPredictionError, match=words):
            kernel.kernel(setup(0, facts=FACTS, examples=2).with_merge(Merge(rule)), base)
    with pytest.raises(NoPredictionError, match="'x5 R1' was not read off made"):
        kernel.kernel(setup(0, facts=9), base)


def test_chains_are_right_as_often_as_the_base_reads_them(spec, base):
    """P(chain) = k where both steps are right: at weights one, both hops of four facts survive."""
    shares = kernel.kernel(spec, base)
    assert shares["hop1/direct"]["correct"] == shares["hop2/direct"]["correct"] == 1.0
    assert shares["two-hop/steps"] == pytest.approx({"correct": 0.75, "other": 0.25})


def test_constants_are_those_the_features_were_made_with(base):
    found = typed.constants(base.features)
    assert found.typed == pytest.approx((0.3 - 0.1) / (1 - 0.1))
    assert found.told == 0.75 and found.sure > 0.9
    assert 0.5 < found.relation_length < 1.6  # made of tokens of one length
    lengthened = typed.constants(made(setup(0, facts=FACTS), own=3.0))
    assert lengthened.relation_length < found.relation_length


# ---- agreement ----


def cell(outcomes, task="setup-0", kind="hop1/direct", base="embedded", rule="sum"):
    info = SimpleNamespace(
        base=base, task=task, library=("hop1", "hop2"), dataset="R", layers="mlp", variant={}, weights=None
    )
    group, ask = kind.split("/")
    return SimpleNamespace(
        info=info,
        trained=True,
        question_kind=kind,
        group=group,
        ask=ask,
        outcomes=outcomes,
        share=outcomes.get("correct", 0.0),
        most_frequent=max(outcomes, key=outcomes.get),
        outcome=lambda name: outcomes.get(name, 0.0),
    )


def test_agreement_counts_as_by_hand():
    cells = [
        cell({"correct": 0.9, "old": 0.1}),
        cell({"correct": 0.2, "old": 0.8}, task="setup-2"),
        cell({"correct": 0.0, "old": 1.0}, task="setup-4"),
    ]
    said = [{"correct": 1.0}, {"correct": 0.6, "old": 0.4}, {"old": 1.0}]
    found = agreement.compared("embedded", "all", "T9", cells, said, draws=99)
    assert found.rank.value == pytest.approx(1) and found.cells == found.libraries == 3
    assert found.majority.value == pytest.approx(2 / 3)
    assert found.error.value == pytest.approx((0.1 + 0.4 + 0.0) / 3)
    assert found.distance.value == pytest.approx(found.error.value)  # two outcomes: all off alike
    assert found.error.low <= found.error.value <= found.error.high
    guesses = agreement.guesses(cells)
    assert guesses[agreement.BASE_SAYS] == [{"old": 1.0}] * 3
    constant = agreement.compared("embedded", "all", "g", cells, guesses[agreement.COMMONEST], draws=99)
    assert constant.majority.value == pytest.approx(2 / 3) and np.isnan(constant.rank.value)
    assert constant.error.value == pytest.approx(np.mean(np.abs(np.array([0.9, 0.2, 0.0]) - 1.1 / 3)))
    text = forms.as_text([found, constant])
    assert "1.00 [" in text and text.splitlines()[2].split()[-1] != "nan"
    assert forms.as_csv([constant]).splitlines()[1].count(",") == 16
    assert '"rank": {"value": null' in forms.as_json([constant])


def test_sweeps_controls_and_single_adapters_do_not_count():
    plain = cell({"correct": 1.0})
    assert agreement.plain(plain)
    for change in ({"weights": (1.0, 0.5)}, {"variant": {"steps": 3}}, {"library": ("hop1",)}):
        other = cell({"correct": 1.0})
        other.info = SimpleNamespace(**{**vars(plain.info), **change})
        assert not agreement.plain(other)


# ---- what is kept ----


def test_kept_predictions_are_those_that_are_computed_now():
    """Else: python -m predictors agreement --fresh"""
    lines = [line for line in tiers.read() if line["tier"] == "T2" and "asked" in line]
    assert lines
    specs = files.read(DATA, ["specs"]).specs
    base = BaseModel.read([DATA], "R", 0)
    chosen = [line for line in lines if line["spec_hash"] in specs and line["dataset"] == "R"][:2]
    assert len(chosen) == 2
    for line in chosen:
        spec = Composition.from_json(json.dumps(specs[line["spec_hash"]]))
        (again,) = tiers.complete([tiers.Wanted(spec, line["digest"], "R", 0, base)], [], ["T2"])
        for kind, said in line["asked"].items():
            assert again["asked"][kind] == pytest.approx(said, abs=1e-5)


def test_a_refusal_is_kept_with_its_reason(tmp_path, spec, base):
    one = tiers.Wanted(spec.with_merge(Merge("ties")), "0", "R", 0, base)
    (line,) = tiers.complete([one], [], ["T0", "T2"])
    assert "no single neurons" in line["refused"]
    tiers.write(tmp_path / "tiers.jsonl", [line])
    assert tiers.read(tmp_path / "tiers.jsonl") == [line]
    assert tiers.complete([one], [line], ["T2"]) == [line]  # not computed anew
    (tmp_path / "tiers.jsonl").write_text('{"tier": 3}\n')
    with pytest.raises(ValueError, match="holds no predictions"):
        tiers.read(tmp_path / "tiers.jsonl")


def test_every_cell_stands_beside_what_was_said_of_it():
    """In every form the numbers of the row and of its prediction; a tier that says nothing is a dash."""
    info = SimpleNamespace(
        **{"base": "b", "task": "setup-0", "library": ("hop1", "hop2"), "rule": "sum", "variant": {}},
        **{"weights": None, "spec_hash": "s", "digest": "d", "dataset": "R", "names": 2},
    )
    shares = {"correct": 0.25, "old": 0.75}
    cell = SimpleNamespace(
        **{"info": info, "infos": (info,), "trained": True, "names": (2,), "question_kind": "hop1/direct"},
        **{"outcomes": shares, "outcome": shares.__getitem__},
    )
    lines = {("T9", "s", "d", "R", 2): {"asked": {"hop1/direct": {"correct": 0.875, "old": 0.125}}}}
    said = agreement.by_cell([cell], ["T9", "T8"], lines, {})
    text = forms.cells_as_text(said).splitlines()[1].split("  ")
    assert [part.strip() for part in text if part.strip()][-3:] == ["0.25 (old)", "0.88 (correct)", "-"]
    header, row = (line.split(",") for line in forms.cells_as_csv(said).splitlines())
    by_name = dict(zip(header, row, strict=True))
    assert (by_name["measured_right"], by_name["T9_right"], by_name["T9_most"]) == (
        "0.25",
        "0.875",
        "correct",
    )
    assert by_name["T8_right"] == by_name["T8_most"] == ""
    (one,) = map(json.loads, forms.cells_as_json(said).splitlines())
    assert one["measured"] == shares and one["predicted"]["T8"] is None and one["names"] == [2]


def test_the_command_names_the_predictors_there_are():
    done = CliRunner().invoke(cli, ["agreement", "--tiers", "T0,T7"])
    assert done.exit_code == 2 and "there is no predictor 'T7': choose T0, T1, T2" in done.output
