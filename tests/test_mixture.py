"""The mixture law: exact in the toy at every width and rule it covers, first order elsewhere, refused where
it fails."""

from itertools import combinations

import jax.numpy as jnp
import numpy as np
import pytest
import z3
from counterexamples import find, refute
from hypothesis import given, settings
from hypothesis import strategies as st

from toytransformer.adapters import LoRA
from toytransformer.compositions import Merge, catalogue
from toytransformer.merging import RULES, MergeContext, Mixing, RoutedMerge, StaticMerge, merge
from toytransformer.mixture import MixtureError, mixing, mixture, second_order
from toytransformer.prediction import asked_prompts, predict
from toytransformer.regimes import Finite, FullLimit, WidthLimit

REGIMES = (FullLimit(), WidthLimit(dimension=24), Finite(dimension=24, width=96))
EPS = np.finfo(float).eps
SQRT = {"temperature_scaling": "sqrt-width"}
#: What no weighting of single updates can be: signs, masks or a cut that the adapters decide together, or
#: updates that are not the adapters'.
JOINT = {
    "ties",
    "tsv",
    "lora-lego",
    "ties-factors",
    "dare",
    "dare-ties",
    "dare-factors",
    "dare-ties-factors",
    "knots",
    "sum-truncated",
    "adaptive-random",
    "new-adapter",
}


def built(rule, facts=2, known=True, weights=None, options=(), **more):
    merged = Merge(rule, weights, options)
    examples = 2 if RULES[rule].needs_data else 0
    return catalogue.build("two-hop", facts=facts, known=known, merge=merged, examples=examples, **more)


def passes(composition, regime, rule="sum"):
    """f_0, f_i and f_ij: what no adapter, each alone and each two at weight 1 answer, under a weighted
    rule."""
    options = composition.merge.options if rule == composition.merge.rule else ()
    one = np.eye(len(composition.adapters))

    def ask(weights, rule=rule, options=options):
        merged = Merge(rule, tuple(map(float, weights)), options)
        return predict(composition.with_merge(merged), regime).output

    pairs = np.stack([ask(a + b) for a, b in combinations(one, 2)])
    return ask(0 * one[0], "sum", ()), np.stack([ask(row) for row in one]), pairs


def asked(composition, regime, rule):
    prompts = (*composition.prompts, *asked_prompts(composition))
    prompts = tuple(dict.fromkeys(prompts))
    rows = dict(zip(prompts, regime.features(prompts, neurons=RULES[rule].needs_neurons).values, strict=True))
    return np.stack([rows[question.prompt] for question in composition.questions])


def laws_output(composition, regime):
    """What the law says of a composition, from predictions of single adapters (and pairs) alone."""
    rule = composition.merge.rule
    found = mixing(predict(composition, regime).merged, asked(composition, regime, rule))
    own_rule = found.pruned or RULES[rule].adapter_kind != "closed-form"
    alone_under = rule if own_rule else "linear" if found.cross is not None else "sum"
    base, alone, pairs = passes(composition, regime, alone_under)
    if found.cross is None:
        return mixture(base, alone, found.own)
    return second_order(base, alone, pairs, found.own, cross=found.cross)


def agree(found, expected):
    """Equal up to rounding: n facts' Gram matrices have condition below 10 n, and outputs are of order
    one."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e5 * EPS * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name)
@pytest.mark.parametrize("rule", sorted(set(RULES) - JOINT))
def test_law_is_exact_in_the_toy(rule, regime):
    for known in (True, False) if regime.name == "limit" else (True,):
        options = SQRT if RULES[rule].routed else ()
        composition = built(rule, known=known, options=options)
        agree(laws_output(composition, regime), predict(composition, regime).output)


@settings(max_examples=8)
@given(
    st.sampled_from(("sum", "linear", "lori-d", "magnitude-prune")),
    st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(REGIMES[:2]),
)
def test_law_is_exact_at_any_weights(rule, weights, facts, known, regime):
    regime = REGIMES[2] if RULES[rule].needs_neurons else regime
    composition = built(rule, facts, known, weights)
    agree(laws_output(composition, regime), predict(composition, regime).output)


@pytest.mark.parametrize("rule", ["arrow-products", "arrow-factors"])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_law_takes_arrows_realised_weights(rule, temperature):
    regime = WidthLimit(dimension=24, seed=3)
    composition = built(rule, 2, True, options={**SQRT, "temperature": temperature})
    weights = mixing(predict(composition, regime).merged, asked(composition, regime, rule)).own
    expected = weights if rule == "arrow-products" else np.sqrt(weights)
    assert np.abs(expected.sum(axis=1) - 1).max() <= 100 * EPS
    assert np.ptp(weights[:, 0]) > 1e3 * EPS  # they differ from prompt to prompt, so means would not do
    agree(laws_output(composition, regime), predict(composition, regime).output)
    base, alone, _ = passes(composition, regime)
    averaged = mixture(base, alone, weights.mean(axis=0))
    assert np.abs(averaged - predict(composition, regime).output).max() > 1e3 * EPS


def test_three_adapters():
    composition = catalogue.build("three-hop", facts=2, merge=Merge("linear", (0.5, -1.0, 2.0)))
    agree(laws_output(composition, REGIMES[0]), predict(composition, REGIMES[0]).output)
    composition = composition.with_merge(Merge("sum", (0.5, -1.0, 2.0)))
    agree(laws_output(composition, REGIMES[0]), predict(composition, REGIMES[0]).output)


# ---- where it fails ----


@pytest.mark.parametrize("rule", sorted(JOINT))
def test_joint_rules_say_that_they_are_no_mixture(rule):
    regime = REGIMES[2]
    merged = predict(built(rule), regime).merged
    with pytest.raises(MixtureError, match="no sum of its adapters' updates"):
        mixing(merged)


def residual(composition, rule):
    """What is left of the merged shift, relatively, after the best fit by what the rule makes of each
    adapter."""
    composition = composition.with_merge(Merge(rule))
    predicted, features = predict(composition, REGIMES[2]), asked(composition, REGIMES[2], rule)
    alone = [merge([lora], Merge(rule)).shift(features) for lora in predicted.adapters]
    target = predicted.merged.shift(features).ravel()
    design = np.stack(alone).reshape(len(alone), -1).T
    rest = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
    return np.linalg.norm(rest) / np.linalg.norm(target)


@pytest.mark.parametrize("rule", ["ties", "dare", "dare-ties", "sum-truncated"])
def test_joint_rules_are_far_from_every_mixture(rule):
    """No weights at all, fitted to the very answers, turn the single adapters' outputs into the merged
    one's."""
    assert residual(catalogue.build("with-oracle", facts=3), rule) > 0.01


def test_ties_is_a_mixture_only_where_no_two_adapters_write_the_same_answer():
    assert residual(catalogue.build("two-hop", facts=3), "ties") <= 1e5 * EPS


def test_dares_masks_alone_are_its_masks_merged_for_the_first_adapter_only():
    """With one mask for each adapter DARE is a mixture; alone, the second adapter draws the first one's
    mask."""
    rng = np.random.default_rng(0)
    pair = [LoRA(rng.normal(size=(5, 2)), rng.normal(size=(7, 2))) for _ in range(2)]
    both = merge(pair, Merge("dare"), MergeContext(rng_seed=1)).delta()
    first, second = (merge([lora], Merge("dare"), MergeContext(rng_seed=1)).delta() for lora in pair)
    drawn = np.random.default_rng(1)
    drawn.random(first.shape)
    masked = pair[1].delta() * (drawn.random(first.shape) < 0.5) / 0.5
    assert np.abs(both - first - masked).max() <= 100 * EPS
    assert np.abs(both - first - second).max() > 0.1


def test_negative_weights_of_pefts_linear_are_no_mixture_of_pairs():
    assert mixing(predict(built("linear-peft", weights=(1.0, 0.25)), REGIMES[0]).merged) == Mixing(
        (1.0, 0.25), (0.5,)
    )
    with pytest.raises(MixtureError):
        mixing(predict(built("linear-peft", weights=(1.0, -0.25)), REGIMES[0]).merged)


# ---- outside the toy: what each order buys ----


def smooth(seed):
    """A model that is not linear in its updates: outputs (prompt, entity) at weights of two adapters."""
    rng = np.random.default_rng(seed)
    start, first, second = rng.normal(size=(3, 5, 6)) / 2
    out = rng.normal(size=(6, 4))
    return lambda a, b, size: np.tanh(start + size * (a * first + b * second)) @ out


@pytest.mark.parametrize("seed", range(3))
def test_orders_of_the_error(seed):
    """Error against the size of the updates: slope 2 for the law, 2 with pairs alone, 3 with pairs and
    scaled."""
    model, w = smooth(seed), (0.6, 0.7)
    sizes = 2.0 ** -np.arange(5, 10)
    errors = []
    for size in sizes:
        base = model(0, 0, size)
        alone = np.stack([model(1, 0, size), model(0, 1, size)])
        scaled = np.stack([model(w[0], 0, size), model(0, w[1], size)])
        pairs = model(1, 1, size)[None]
        said = (
            mixture(base, alone, w),
            second_order(base, alone, pairs, w),
            second_order(base, alone, pairs, w, scaled=scaled),
        )
        errors.append([np.abs(model(*w, size) - each).max() for each in said])
    slopes = np.polyfit(np.log(sizes), np.log(np.array(errors)), 1)[0]
    # the next order bends the line by about the size, 1/32 at most
    assert np.abs(slopes - (2, 2, 3)).max() <= 3 / 32


def test_pairs_are_exact_at_weights_of_zero_and_one():
    model = smooth(0)
    base, alone = model(0, 0, 1), np.stack([model(1, 0, 1), model(0, 1, 1)])
    for w in ((0, 0), (1, 0), (0, 1), (1, 1)):
        found = second_order(base, alone, model(1, 1, 1)[None], w)
        assert np.abs(found - model(*w, 1)).max() <= 100 * EPS
    assert np.abs(mixture(base, alone, (1, 1)) - model(1, 1, 1)).max() > 0.01


class TwoLayers:
    """(second + E)(S (first + D) x), three updates (D, E); S a fixed mask, or ReLU where `active` is None."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.first, self.second, self.x = rng.normal(size=(6, 4)), rng.normal(size=(3, 6)), rng.normal(size=4)
        self.low, self.high = rng.normal(size=(3, 6, 4)), rng.normal(size=(3, 3, 6))

    def output(self, w, active=None):
        hidden = (self.first + np.tensordot(w, self.low, 1)) @ self.x
        kept = np.maximum(hidden, 0) if active is None else active * hidden
        return ((self.second + np.tensordot(w, self.high, 1)) @ kept)[None]

    def passes(self, w, active=None):
        """Merged, base, alone and pairs."""
        one = np.eye(3)
        alone = np.stack([self.output(row, active) for row in one])
        pairs = np.stack([self.output(a + b, active) for a, b in combinations(one, 2)])
        return self.output(w, active), self.output(0 * w, active), alone, pairs

    def cross(self, i, j, active):
        """What the second layer of j makes of what the first layer of i adds."""
        return self.high[j] @ (active * (self.low[i] @ self.x))


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.floats(-2, 2)] * 3))
def test_two_layers_leave_out_their_cross_terms(seed, weights):
    net, w, active = TwoLayers(seed), np.array(weights), np.random.default_rng(seed).integers(2, size=6)
    merged, base, alone, pairs = net.passes(w, active)
    factors = np.outer(w, w) - np.diag(w)
    crossed = np.array([[net.cross(i, j, active) for j in range(3)] for i in range(3)])
    missed = merged - mixture(base, alone, w)
    room = 1e4 * EPS * (1 + max(np.abs(part).max() for part in (merged, base, alone, pairs)))
    assert np.abs(missed - np.tensordot(factors, crossed, 2)).max() <= room
    own = sum(factors[i, i] * crossed[i, i] for i in range(3))
    assert np.abs(merged - second_order(base, alone, pairs, w) - own).max() <= room
    norms = [np.linalg.norm(parts, axis=(1, 2)) for parts in (net.low, net.high)]
    bound = np.linalg.norm(net.x) * np.sum(np.abs(factors) * np.outer(*norms))
    assert np.linalg.norm(missed) <= bound + room


def test_z3_finds_no_two_layers_that_leave_out_anything_else():
    """Of one neuron each, two adapters in both layers, any weights (MixtureLaw.remainder_of_mixture)."""
    (first, second, x), w, low, high = (z3.Reals(names) for names in ("a b x", "w0 w1", "d0 d1", "e0 e1"))

    def output(weights):
        below, above = (z3.Sum([c * u for c, u in zip(weights, us, strict=True)]) for us in (low, high))
        return (second + above) * (first + below) * x

    base = output((0, 0))
    mixed = base + w[0] * (output((1, 0)) - base) + w[1] * (output((0, 1)) - base)
    cross = [(w[i] * w[j] - (w[i] if i == j else 0)) * high[j] * low[i] * x for i in (0, 1) for j in (0, 1)]
    refute(x > 0, output(w) - mixed != z3.Sum(cross))
    find(x > 0, output(w) != mixed)


def test_a_neuron_that_switches_leaves_out_more():
    """Outside the hypothesis of relu_mixture: ReLU is not linear where a neuron crosses its edge."""
    w, rest = np.array([0.5, 0.5, 0.5]), []
    for seed in range(10):
        net = TwoLayers(seed)
        active = net.first @ net.x > 0
        merged, base, alone, _ = net.passes(w)
        factors = np.outer(w, w) - np.diag(w)
        terms = sum(factors[i, j] * net.cross(i, j, active) for i in range(3) for j in range(3))
        rest.append(np.abs(merged - mixture(base, alone, w) - terms).max())
    assert max(rest) > 0.1


# ---- arrays of any library, any rank; bad input ----


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray, "torch"])
def test_arrays_of_every_library(convert):
    if convert == "torch":
        convert = pytest.importorskip("torch").asarray
    rng = np.random.default_rng(0)
    base, alone, pairs = (rng.normal(size=size) for size in ((4, 3, 6), (3, 4, 3, 6), (3, 4, 3, 6)))
    for weights in (rng.normal(size=3), rng.normal(size=(4, 3))):
        expected = base + np.einsum("pk,kpse->pse", np.broadcast_to(weights, (4, 3)), alone - base)
        found = mixture(convert(base), convert(alone), convert(weights))
        assert type(found) is type(convert(base))
        agree(np.asarray(found), expected)
        agree(np.asarray(mixture(convert(base), convert(alone), weights.tolist())), expected)
        w = np.broadcast_to(weights, (4, 3))
        for number, (i, j) in enumerate(combinations(range(3), 2)):
            both = (w[:, i] * w[:, j])[:, None, None]
            expected = expected + both * (pairs[number] - alone[i] - alone[j] + base)
        found = second_order(convert(base), convert(alone), convert(pairs), convert(weights))
        agree(np.asarray(found), expected)


def test_bad_input_is_named():
    base, alone = np.zeros((4, 6)), np.zeros((2, 4, 6))
    for wrong, said in (
        (lambda: mixture(base, alone[:, :3], (1, 1)), r"alone \(2, 3, 6\)"),
        (lambda: mixture(base[0], alone[:, 0], (1, 1)), r"base has shape \(6,\)"),
        (lambda: mixture(base, alone, (1, 1, 1)), r"weights of shape \(3,\).*give \(2,\) or \(4, 2\)"),
        (lambda: mixture(base, alone, np.ones((2, 4))), r"weights of shape \(2, 4\)"),
        (lambda: mixture(base, alone, (1, np.nan)), "weights of the adapters hold NaN"),
        (lambda: mixture(base, np.full_like(alone, -np.inf), (1, 1)), "masked tokens"),
        (lambda: mixture(base.astype(int), alone, (1, 1)), "int64"),
        (lambda: second_order(base, alone, alone, (1, 1)), "2 pairs for 2 adapters: give 1"),
        (lambda: second_order(base, alone, alone[:1], (1, 1), scaled=alone[:1]), "1 scaled outputs"),
        (lambda: second_order(base, alone, alone[:1], (1, 1), cross=(1, 1)), "one for each pair"),
    ):
        with pytest.raises(MixtureError, match=said):
            wrong()
    routed = predict(built("arrow-products"), REGIMES[1]).merged
    assert isinstance(routed, RoutedMerge)
    with pytest.raises(MixtureError, match="features"):
        mixing(routed)
    with pytest.raises(MixtureError, match="object does not say"):
        mixing(object())
    assert StaticMerge(np.eye(2)).mixing is None
