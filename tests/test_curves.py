"""T3 and T4 from what was measured alone: hops by curves, chains by their product, direct ones by mixture."""

import json
from types import SimpleNamespace

import pytest

from predictors import PREDICTORS, BaseModel, NoPredictionError
from predictors.curves import CONTEXT, Curves, identities
from toytransformer.compositions import Merge
from toytransformer.compositions.setups import setup

SPEC = setup(0, facts=3)
ALONE = {name: setup(0, facts=3, library=(name,)) for name in ("hop1", "hop2")}
#: Share right at each weight: a plain adapter, and one that needs more.
RIGHT = {"hop1": {0.5: 0.8, 1.0: 1.0}, "hop2": {0.5: 0.2, 1.0: 0.9}}
#: Of each adapter on the other's questions the share of something else than the base says.
MOVED = {"hop1": {0.5: 0.0, 1.0: 0.4}, "hop2": {0.5: 0.1, 1.0: 0.5}}


def cell(
    group,
    ask,
    *,
    spec=SPEC,
    control=None,
    weight=None,
    right=0.0,
    moved=0.0,
    variant=(),
    scored=None,
    gates=None,
):
    """A cell of two clusters as predictors read it."""
    library = tuple(adapter.name for adapter in spec.adapters) if control != "base" else ()
    shares = {"correct": right, "old": 1 - right - moved, "other": moved}
    info = SimpleNamespace(
        spec_hash=spec.spec_hash,
        library=library,
        control=control,
        weights=None if weight is None else (weight,),
        variant=dict(variant),
    )
    return SimpleNamespace(
        info=info,
        question_kind=f"{group}/{ask}",
        share=right,
        outcomes=shares,
        by_cluster=lambda of="correct": {"x0": [shares[of]], "x1": [shares[of]]},
        column=lambda name: ["x0/0"],
        logprobs=[scored],
        gates=[gates],
        gate=lambda place: {name: blocks[0] for name, blocks in (gates or {}).get(place, {}).items()},
    )


def cells():
    yield cell("two-hop", "steps", control="base", right=0.9, variant=CONTEXT)
    yield cell(
        "two-hop", "direct", control="base", scored={"correct:z0": -4.0, "old:z1": -1.0, "shuffled:z2": 0}
    )
    for name, spec in ALONE.items():
        for weight, right in RIGHT[name].items():
            about = {"spec": spec, "control": name, "weight": weight}
            yield cell(name, "direct", right=right, **about)
            other = "hop2" if name == "hop1" else "hop1"
            yield cell(other, "direct", moved=MOVED[name][weight], **about)
            yield cell("two-hop", "direct", scored={"correct:z0": -2.2, "old:z1": -1.6}, **about)
    gates = {"answer": {"hop1": (1.0,), "hop2": (0.5,)}}
    arrow = SPEC.with_merge(Merge("arrow-products"))
    for group in ("hop1", "hop2", "two-hop"):
        yield cell(group, "direct", spec=arrow, gates=gates)
    yield cell(
        "two-hop",
        "steps",
        spec=arrow,
        gates={"hop1": gates["answer"], "hop2": {"hop1": (0.0,), "hop2": (1.0,)}},
    )


SPECS = {spec.spec_hash: json.loads(spec.to_json()) for spec in ALONE.values()}


@pytest.fixture(scope="module")
def base():
    return BaseModel(None, Curves.of(cells(), SPECS))


def said(rule, base, tier="T3", **options):
    return PREDICTORS[tier].predict(SPEC.with_merge(Merge(rule, **options)), base)


def test_hops_are_read_off_their_curves_and_chains_are_k_times_their_product(base):
    mean = said("mean", base)
    assert mean["hop1/direct"] == pytest.approx({"correct": 0.8, "old": 0.2, "other": 0.0})
    assert mean["hop2/direct"] == pytest.approx({"correct": 0.2, "old": 0.8, "other": 0.0})
    assert mean["two-hop/steps"]["correct"] == pytest.approx(0.9 * 0.8 * 0.2)
    assert said("sum", base)["two-hop/steps"]["correct"] == pytest.approx(0.9 * 1.0 * 0.9)


def test_a_partner_that_moves_a_hop_takes_it_from_the_hops_own_adapter(base):
    """Of hop 1 hop2's adapter leaves .9 at one half and .5 at one; of hop 2 hop1's leaves all, and .6."""
    mean, both = said("mean", base, "T4"), said("sum", base, "T4")
    assert mean["hop1/direct"] == pytest.approx({"correct": 0.9 * 0.8, "old": 0.9 * 0.2, "other": 0.1})
    assert mean["hop2/direct"] == pytest.approx({"correct": 0.2, "old": 0.8, "other": 0.0})
    assert both["hop1/direct"] == pytest.approx({"correct": 0.5, "old": 0.0, "other": 0.5})
    assert both["hop2/direct"] == pytest.approx({"correct": 0.6 * 0.9, "old": 0.6 * 0.1, "other": 0.4})
    assert both["two-hop/steps"]["correct"] == pytest.approx(0.9 * 0.5 * (0.6 * 0.9))
    assert both["two-hop/direct"] == said("sum", base)["two-hop/direct"]
    knows = [
        cell("hop1", "direct", spec=ALONE["hop2"], control="hop2", weight=w, right=0.5) for w in (0.5, 1.0)
    ]
    others = [one for one in cells() if (one.info.control, one.question_kind) != ("hop2", "hop1/direct")]
    right = said("mean", BaseModel(None, Curves.of([*others, *knows], SPECS)), "T4")
    assert right["hop1/direct"]["correct"] == pytest.approx(0.8)  # a partner that is right decides nothing
    only = Curves.of([one for one in cells() if one.question_kind != "hop2/direct"], SPECS)
    with pytest.raises(NoPredictionError, match="'hop2/direct' was not asked of one of the adapters"):
        said("sum", BaseModel(None, only), "T4")


def test_routed_weights_are_those_at_the_place_that_is_asked(base):
    arrow = said("arrow-products", base)
    assert arrow["hop1/direct"]["correct"] == pytest.approx(1.0)
    assert arrow["hop2/direct"]["correct"] == pytest.approx(0.2)
    assert arrow["two-hop/steps"]["correct"] == pytest.approx(0.9 * 1.0 * 0.9)


def test_direct_answers_are_the_largest_by_the_mixture_law(base):
    """Shifts +1.8 and -.6 each: at 1/2 right is at -2.2 against -1.6, at 1 it is at -.4 against -2.2."""
    assert said("mean", base)["two-hop/direct"] == {"old": 1.0}
    assert said("sum", base)["two-hop/direct"] == {"correct": 1.0}


def test_what_was_not_measured_is_refused(base):
    with pytest.raises(NoPredictionError, match="needs scale curves"):
        said("sum", None)
    with pytest.raises(
        NoPredictionError, match="'linear' gives the products of adapters no weights of their own"
    ):
        said("linear", base)
    with pytest.raises(NoPredictionError, match="'hop1' was not measured alone"):
        PREDICTORS["T3"].predict(setup(2, facts=3), base)


def test_an_adapter_is_the_same_in_every_library_that_holds_it():
    bridged = identities(setup(2, facts=3))
    assert identities(setup(4, facts=3)) == (bridged[0], identities(SPEC)[1])
    assert identities(setup(5, facts=3)) == (identities(SPEC)[0], bridged[1])
    kinds = [identities(setup(number, facts=3)) for number in (0, 2, 6, 7, 8)]  # chains tell 0 from 6
    assert len(set(kinds)) == len(kinds)
