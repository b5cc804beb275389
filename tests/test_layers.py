"""Stacks of layers: the explicit network as the independent route, closed forms, where composition begins."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from toytransformer import merging, prediction
from toytransformer.bases import base_output
from toytransformer.compositions import Adapter, Composition, Fact, Merge, Prompt, World, catalogue, question
from toytransformer.hidden import MASKS
from toytransformer.layers import LayerError, Stack, drawn, predict, threshold, two_layers
from toytransformer.layers.network import NetworkDirections, StackedTransformer
from toytransformer.layers.spread import spread
from toytransformer.merging import RULES, RuleError
from toytransformer.regimes import Finite, FullLimit, RegimeError, WidthLimit

ORDERED = {"hop1": (1,), "hop2": (2,)}
LIMIT = Stack(FullLimit())
#: Products of small integers and kernels through two solves: a few hundred operations.
ROUNDING = 1e3 * np.finfo(float).eps
STATIC = [name for name, rule in RULES.items() if not rule.needs_data and not rule.routed]


def pair(facts, known=False, weights=None, rule="sum", **how):
    return catalogue.build("two-hop", facts=facts, known=known, merge=Merge(rule, weights), **how)


def answers(facts):
    return [f"z{i}" for i in range(1, facts + 1)]


# ---- one layer is the model of the paper ----


@pytest.mark.parametrize("rule", ["sum", "mean", "arrow-products"])
@pytest.mark.parametrize("mask", MASKS)
def test_one_layer_is_the_one_layer_model(rule, mask):
    for known in (True, False):
        facts = 1 if RULES[rule].spectral else 3  # singular values of several known facts tie
        composition, regime = pair(facts, known, rule=rule), FullLimit(mask=mask, relation_length=1.5)
        stack = predict(composition, Stack(regime, count=1), {"hop1": (1,), "hop2": (1,)})
        plain = prediction.predict(composition, regime)
        assert np.abs(stack.output - plain.output).max() <= stack.tie
        assert stack.shares == plain.shares


def test_a_layer_without_adapters_changes_nothing_where_attention_does_not_stay():
    composition = pair(3, weights=(1.0, 0.7))
    stack = predict(
        composition, Stack(FullLimit(), count=2, attention_stays=False), {"hop1": (1,), "hop2": (1,)}
    )
    assert np.abs(stack.output - prediction.predict(composition, FullLimit()).output).max() <= stack.tie


def test_chains_of_two_steps_go_through_a_stack():
    steps = catalogue.build("chain-of-thought", facts=3, known=True)
    assert predict(steps, LIMIT, ORDERED).accuracy == 1.0


# ---- the explicit network ----


def built(composition, stack, seed=0):
    tokens = tuple(dict.fromkeys(token for prompt in composition.prompts for token in prompt.tokens))
    return StackedTransformer(stack, tokens, composition.world.entities, rngs=nnx.Rngs(seed))


def shapes():
    regimes = st.builds(
        Finite,
        dimension=st.just(12),
        width=st.just(160),
        mask=st.sampled_from(MASKS),
        attention=st.sampled_from(["uniform", "softmax"]),
        relation_length=st.sampled_from([1.0, 1.4]),
    )
    flags = {name: st.booleans() for name in ("tied", "attention_stays", "unembedding")}
    return st.builds(Stack, regimes, count=st.just(2), **flags)


@settings(max_examples=10)
@given(shapes(), st.booleans(), st.sampled_from(STATIC), st.data())
def test_prediction_is_the_networks_forward_pass(stack, known, rule, data):
    composition = pair(2, known, rule=rule)
    layers = st.sampled_from([(1,), (2,), (1, 2)])
    placement = {name: data.draw(layers) for name in ORDERED}
    network = built(composition, stack)
    stacked = predict(composition, stack, placement, NetworkDirections(network))
    dense = [np.zeros(network.readout[0].shape) if u is None else u.delta() for u in stacked.updates]
    network.readout[...] = jnp.asarray(np.stack(dense))
    prompts = [q.prompt for q in composition.questions]
    output = np.asarray(network(prompts)) + base_output(composition.world, prompts)
    assert np.abs(output - stacked.output).max() <= max(stacked.tie, ROUNDING * np.abs(output).max())


@pytest.mark.parametrize("layer", [1, 2])
def test_training_in_the_network_reaches_the_least_norm_update(layer):
    # gradient descent from 0 stays in the span of the features, where one update stores the facts
    composition = pair(2)
    stack = Stack(Finite(dimension=16, width=128))
    network = built(composition, stack)
    name = f"hop{layer}"
    alone = Composition(
        "alone", composition.world, (composition.adapters[layer - 1],), Merge(), composition.questions
    )
    closed = predict(alone, stack, {name: (layer,)}, NetworkDirections(network)).updates[layer - 1].delta()
    facts = composition.adapters[layer - 1].facts
    prompts = [fact.prompt for fact in facts]
    names = composition.world.entities
    targets = np.array([[float(fact.answer == entity) for entity in names] for fact in facts])
    graph, weights, frozen = nnx.split(network, nnx.Param, ...)
    shape = network.readout.shape[1:]

    @jax.jit
    @jax.value_and_grad
    def loss(update):
        readout = jnp.zeros(network.readout.shape).at[layer - 1].set(update.reshape(shape))
        changed = jax.tree.map(lambda _: readout, weights)
        return jnp.sum((nnx.merge(graph, changed, frozen)(prompts) - targets) ** 2)

    trained = optimize.minimize(loss, np.zeros(closed.size), jac=True, options={"gtol": 1e-9}, method="CG")
    # the loss is quadratic; along the features its curvature is at least that of their Gram matrix
    assert trained.fun < 1e-16
    assert np.abs(trained.x.reshape(shape) - closed).max() <= 1e-7


# ---- hop 1 below hop 2 ----


@settings(max_examples=25)
@given(st.integers(1, 6), st.floats(0.05, 4), st.booleans(), st.booleans())
def test_two_layers_in_closed_form(facts, first, known, stays):
    closed = two_layers(facts, first, known=known, attention_stays=stays)
    composition = pair(facts, known, (first, 1.0))
    stack = Stack(FullLimit(), attention_stays=stays)
    stacked = predict(composition, stack, ORDERED)
    names = composition.world.entities
    row = stacked.output[0]
    assert row[names.index("y1")] == pytest.approx(closed.bridge, abs=ROUNDING)
    assert row[names.index("z1")] == pytest.approx(closed.own, abs=ROUNDING * max(1, first))
    if facts > 1:
        assert row[names.index("z2")] == pytest.approx(closed.other, abs=ROUNDING * max(1, first))
        assert closed.own > closed.other
    found = threshold(composition, stack, ORDERED, "hop2")
    assert found == pytest.approx(closed.threshold, rel=1e-9)


@pytest.mark.parametrize("known", [True, False])
def test_every_relabelling_composes_from_the_threshold_on(known):
    closed = two_layers(3, 1.0, known=known).threshold
    for sigma in itertools.permutations(range(3)):
        assert predict(pair(3, known, (1.0, 1.01 * closed), sigma=sigma), LIMIT, ORDERED).accuracy == 1.0
        assert predict(pair(3, known, (1.0, 0.99 * closed), sigma=sigma), LIMIT, ORDERED).accuracy == 0.0


def test_hops_survive_where_they_compose():
    hops = catalogue.build("one-hop", facts=4, known=True, merge=Merge("sum", (1.0, 3.0)))
    assert predict(hops, LIMIT, ORDERED).accuracy == 1.0
    assert predict(pair(4, True, (1.0, 3.0)), LIMIT, ORDERED).accuracy == 1.0


def test_parts_of_adapters_compose_where_some_of_hop_1_lies_below_some_of_hop_2():
    for places in (((1, 2), (2,)), ((1,), (1, 2)), ((1, 2), (1, 2))):
        stacked = predict(pair(3, weights=(1.0, 3.0)), LIMIT, dict(zip(ORDERED, places, strict=True)))
        assert stacked.accuracy == 1.0


def test_interleaved_adapters_compose_and_those_that_lie_the_other_way_round_by_less():
    stack, composition = Stack(FullLimit(), count=4), pair(3, weights=(1.0, 3.0))
    margins = [
        predict(composition, stack, dict(zip(ORDERED, places, strict=True))).margins(answers(3)).min()
        for places in (((1, 2), (3, 4)), ((1, 3), (2, 4)), ((2, 4), (1, 3)), ((3, 4), (1, 2)))
    ]
    assert margins[0] > margins[1] > margins[2] > 0
    assert margins[3] <= 1e3 * ROUNDING


# ---- every other order ----

#: Layers of hop 1 and of hop 2, which lies nowhere above hop 1's lowest.
BLIND = [((1,), (1,)), ((2,), (2,)), ((2,), (1,)), ((1, 2), (1,)), ((2,), (1, 2))]
BLIND_RULES = [name for name in STATIC if RULES[name].label_blind]


@settings(max_examples=15)
@given(st.sampled_from(BLIND_RULES), st.sampled_from(BLIND), st.booleans(), st.booleans(), st.integers(0, 99))
def test_no_other_order_composes(rule, places, known, tied, seed):
    stack = Stack(Finite(dimension=8, width=64, attention="softmax", seed=seed), tied=tied)
    placement = dict(zip(ORDERED, places, strict=True))
    right, rows = 0.0, []
    for sigma in itertools.permutations(range(3)):
        composition = pair(3, known, rule=rule, sigma=sigma)
        stacked = predict(composition, stack, placement)
        columns = [composition.world.entities.index(z) for z in answers(3)]
        order = np.argsort([str(q.prompt) for q in stacked.questions])
        rows.append(stacked.output[order][:, columns])
        right += stacked.accuracy / 6
    assert right <= 1 / 3 + ROUNDING
    assert np.ptp(rows, axis=0).max() <= stacked.tie


def test_hop_2_partly_above_hop_1_sees_the_labels():
    # outside the theorem: the z-outputs move with sigma
    found = [
        predict(pair(2, sigma=sigma), LIMIT, {"hop1": (1,), "hop2": (1, 2)}) for sigma in ((0, 1), (1, 0))
    ]
    column = found[0].composition.world.entities.index("z1")
    assert abs(found[0].output[0, column] - found[1].output[0, column]) > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_untied_labels_are_chance_over_their_embeddings(seed):
    """Over the n! ways to give the n label embeddings of one draw to the y, exactly at most 1/n."""
    stack = Stack(Finite(dimension=8, width=64, seed=seed), tied=False)
    right = []
    for arrangement in itertools.permutations(range(3)):
        for sigma in itertools.permutations(range(3)):
            composition = pair(3, weights=(1.0, 3.0), sigma=sigma)
            names = composition.world.entities
            tokens = tuple(dict.fromkeys(t for p in composition.prompts for t in p.tokens))
            directions = drawn(stack, tokens, names)
            rows = np.array([names.index(f"y{i}") for i in (1, 2, 3)])
            directions.labels[rows] = directions.labels[rows[list(arrangement)]]
            right.append(predict(composition, stack, ORDERED, directions).accuracy)
    assert np.mean(right) <= 1 / 3 + ROUNDING
    assert np.ptp(right) > 0  # a single draw is not blind


def test_untied_labels_are_blind_in_the_limit():
    stack = Stack(FullLimit(), tied=False)
    found = predict(pair(4, weights=(1.0, 3.0)), stack, ORDERED)
    assert found.accuracy <= 1 / 4
    assert np.abs(found.margins(answers(4))).max() <= found.tie


def test_a_base_that_knows_hop_2_above_hop_1_composes():
    """What the theorem asks of the base: here it says the z itself, in the layer above adapter 1."""
    n = 3
    hop1 = tuple(Fact.of(f"x{i}", "R1", f"y{i}") for i in range(n))
    known = tuple(Fact.of(f"y{i}", "R2", f"z{i}") for i in range(n))
    world = World.of(known, hop1)
    adapters = (Adapter("hop1", hop1),)
    asked = tuple(question(world, Prompt(f"x{i}", ("R1", "R2")), adapters) for i in range(n))
    composition = Composition("base above", world, adapters, Merge("sum", (1.0,)), asked)
    above = predict(composition, Stack(FullLimit(), base_layers=(2,)), {"hop1": (1,)})
    assert np.all(above.margins(["z0", "z1", "z2"]) > 0.1)
    below = predict(composition, Stack(FullLimit(), base_layers=(1,)), {"hop1": (1,)})
    assert np.abs(below.margins(["z0", "z1", "z2"])).max() <= below.tie


def test_a_trained_base_inside_the_layers_does_not_stand_in_the_way():
    for layers in ((1,), (2,), (1, 2)):
        stack = Stack(FullLimit(), base_layers=layers)
        assert predict(pair(3, True, (1.0, 3.0)), stack, ORDERED).accuracy == 1.0


# ---- finite sizes ----


def test_spread_of_margins_is_the_derived_one(unembedding=True):
    composition, draws, d, m = pair(2, weights=(1.0, 3.0)), 80, 256, 1024
    stack = Stack(FullLimit(), unembedding=unembedding)
    derived = spread(composition, stack, ORDERED)
    limit, rival = derived.margins[0], derived.rivals[:1]
    for regime, error in (
        (lambda seed: WidthLimit(dimension=d, seed=seed), derived.standard_error(dimension=d)[0]),
        (lambda seed: Finite(dimension=math.inf, width=m, seed=seed), derived.standard_error(width=m)[0]),
    ):
        found = [
            predict(composition, Stack(regime(seed), unembedding=unembedding), ORDERED).margins(rival)[0]
            for seed in range(draws)
        ]
        assert np.std(found, ddof=1) == pytest.approx(error, abs=5 * error / math.sqrt(2 * (draws - 1)))
        # the limit is approached like 1 / size, which is below the standard error of the mean here
        assert np.mean(found) == pytest.approx(limit, abs=5 * error / math.sqrt(draws))


def test_softmax_attention_tends_to_uniform():
    # key and query products are of order 1 / sqrt d, so weights and margins approach those of the limit alike
    composition = pair(2, weights=(1.0, 3.0))
    limit = predict(composition, LIMIT, ORDERED).margins()[0]

    def gap(d):
        stacks = (Stack(WidthLimit(dimension=d, attention="softmax", seed=seed)) for seed in range(6))
        return np.mean([abs(predict(composition, stack, ORDERED).margins()[0] - limit) for stack in stacks])

    assert gap(512) < gap(32) / 2  # sqrt(512 / 32) = 4 on average


# ---- what is refused ----


@pytest.mark.parametrize(
    "ask",
    [
        lambda: Stack(FullLimit(), count=0),
        lambda: Stack(FullLimit(), count=True),
        lambda: Stack(FullLimit(), base_layers=(3,)),
        lambda: predict(pair(2), LIMIT, {"hop1": (1,)}),
        lambda: predict(pair(2), LIMIT, {"hop1": (1,), "hop2": ()}),
        lambda: predict(pair(2), LIMIT, {"hop1": (1,), "hop2": (0,)}),
        lambda: predict(pair(2), LIMIT, {"hop1": (1, 1), "hop2": (2,)}),
        lambda: predict(pair(2, rule="new-adapter"), LIMIT, ORDERED),
        lambda: threshold(pair(2), LIMIT, {"hop1": (2,), "hop2": (1,)}, "hop2"),
        lambda: threshold(pair(2, rule="ties"), LIMIT, ORDERED, "hop2"),
        lambda: spread(pair(2, rule="ties"), LIMIT, ORDERED),
        lambda: two_layers(0, 1.0, known=True),
        lambda: two_layers(2, 0.0, known=True),
    ],
)
def test_what_means_nothing_is_refused(ask):
    with pytest.raises(LayerError):
        ask()


def test_what_one_layer_refuses_a_stack_refuses():
    with pytest.raises(RuleError):
        predict(pair(2, weights=(1.0, 3.0), rule="mean"), LIMIT, ORDERED)
    with pytest.raises(RegimeError):
        built(pair(2), LIMIT)


def test_rules_that_route_choose_among_the_adapters_of_a_layer():
    routed = next(name for name, rule in merging.RULES.items() if rule.routed)
    apart = predict(pair(2, rule=routed), LIMIT, ORDERED)
    assert np.abs(apart.output - predict(pair(2), LIMIT, ORDERED).output).max() <= apart.tie


def test_what_singular_values_leave_open_is_said():
    assert predict(pair(3, True, rule="linear"), LIMIT, ORDERED).undetermined
    assert predict(pair(3, True), LIMIT, ORDERED).undetermined is None


def test_records_say_where_adapters_lie():
    record = predict(pair(2, True), LIMIT, ORDERED).records()[0]
    assert record.regime["layers"] == {"hop1": [1], "hop2": [2]}
    assert record.regime["tied"] is True and record.regime["name"] == "limit"
