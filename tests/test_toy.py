"""Bases and readouts: the routes of `predict` against explicit matrices, and what must not change."""

import json
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import seeds

from toytransformer import hidden, merging
from toytransformer.adapters import LoRA, closed_form
from toytransformer.bases import ExactBase, MeasuredBase, TrainedBase, one_hot
from toytransformer.compositions import Composition, Fact, Merge, Prompt, SpecError, World, catalogue
from toytransformer.compositions.knowledge import DEGREES, known_to, with_bystanders
from toytransformer.network import OneLayerTransformer
from toytransformer.prediction import predict
from toytransformer.readout import Gram, OneHot, ReadoutError, Typed
from toytransformer.regimes import Finite, FullLimit, RegimeError, WidthLimit, streams
from toytransformer.relabelling import average
from toytransformer.toy import Toy, as_toy
from toytransformer.training import train_lora

EPS = np.finfo(float).eps
LIMIT = FullLimit()
#: Wide enough to hold every fact of the small worlds here, narrow enough to be quick.
SMALL = Finite(dimension=24, width=200)


def small(name="two-hop", facts=2, degree="one-hop", bystanders=2, own_second=False, **how):
    """A composition of the catalogue whose base knows so much."""
    composition = catalogue.build(name, facts=facts, known=degree != "nothing", **how)
    asked = [Prompt(f"x{i}", ("R1", "R2")) for i in range(1, facts + 1)]
    world = with_bystanders(composition.world, asked, bystanders, own_second=own_second)
    return composition.with_world(known_to(world, asked, degree))


def rooted(world, readout, rng):
    """Any U with U^T U = G: the Cholesky factor under a random rotation, (direction, entity)."""
    factor = np.linalg.cholesky(readout.gram(world)).T
    rotation, _ = np.linalg.qr(rng.standard_normal(factor.shape))
    return rotation @ factor


def explicit(composition, phi, vectors, base=True):
    """Base W0 and updates of a network whose answers have the vectors U, by least squares: dense matrices."""
    world = composition.world

    def fitted(prompts, targets):
        return np.linalg.lstsq(np.stack([phi[p] for p in prompts]), targets, rcond=None)[0].T

    def vector(names):
        return (vectors @ one_hot(world, names).T).T

    known = world.known
    readout = fitted([f.prompt for f in known], vector([f.answer for f in known]))
    updates = []
    for adapter in composition.adapters:
        stored = [fact.prompt for fact in adapter.facts]
        said = np.stack([phi[prompt] for prompt in stored]) @ readout.T
        updates.append(fitted(stored, vector([fact.answer for fact in adapter.facts]) - said))
    return readout, updates


def features_of(regime, composition):
    prompts = (*composition.prompts, *(fact.prompt for fact in composition.world.known))
    prompts = tuple(dict.fromkeys(prompts))
    # in the order in which `predict` draws them: tokens are numbered by first appearance
    return dict(zip(prompts, regime.features(prompts).values, strict=True))


def slack(phi):
    """Rounding of least squares on all features together."""
    rows = np.stack(list(phi.values()))
    return 1e3 * EPS * np.linalg.cond(rows @ rows.T)


# ---- what must not change ----


@pytest.mark.parametrize("rule", ["sum", "linear", "arrow-products", "ties"])
@pytest.mark.parametrize("name", ["two-hop", "chain-of-thought"])
def test_at_t_zero_nothing_changes_bit_for_bit(name, rule):
    composition = catalogue.build(name, facts=2, merge=Merge(rule))
    plain = predict(composition, SMALL)
    for readout in (OneHot(), Typed(0.0)):
        toy = predict(composition, Toy(SMALL, ExactBase(), readout))
        assert np.array_equal(toy.output, plain.output) and toy.tie == plain.tie
        assert toy.distributions == plain.distributions and toy.questions == composition.questions


def test_defaults_leave_no_trace_in_specs_and_records():
    composition = catalogue.build("two-hop", facts=2)
    assert "multi_hop" not in json.loads(composition.to_json())["world"]
    assert Toy(LIMIT).describe() == LIMIT.describe() and "relation_length" not in LIMIT.describe()
    assert Toy(LIMIT).plain and as_toy(LIMIT) == Toy(LIMIT)
    described = Toy(FullLimit(relation_length=2), TrainedBase(), Typed(0.5)).describe()
    assert {k: described[k] for k in ("base", "typed", "relation_length")} == {
        "base": "trained",
        "typed": 0.5,
        "relation_length": 2.0,
    }
    record = predict(small(), Toy(LIMIT, TrainedBase(), Typed(0.5))).records()[0]
    assert record.regime["base"] == "trained" and record.regime["typed"] == 0.5


# ---- independent routes ----


@settings(max_examples=10)
@given(
    st.sampled_from(DEGREES),
    st.integers(1, 3),
    st.floats(0, 0.9),
    st.booleans(),
    st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    st.sampled_from([LIMIT, FullLimit(relation_length=2), FullLimit(mask="causal", relation_length=0.5)]),
    seeds,
)
@example("one-hop", 2, 0.5, True, (0.7, 1.5), SMALL, 0)
@example("both", 2, 0.2, False, (1.0, 1.0), replace(SMALL, relation_length=2.0, attention="softmax"), 1)
def test_every_output_against_explicit_matrices(degree, facts, t, own_second, weights, regime, seed):
    composition = small("one-hop", facts, degree, 2, own_second, merge=Merge("sum", weights))
    readout = Typed(t)
    toy = predict(composition, Toy(regime, TrainedBase(), readout))
    phi = features_of(regime, composition)
    vectors = rooted(composition.world, readout, np.random.default_rng(seed))
    base, updates = explicit(composition, phi, vectors)
    asked = np.stack([phi[question.prompt] for question in composition.questions])
    expected = asked @ (base + sum(w * d for w, d in zip(weights, updates, strict=True))).T @ vectors
    assert np.abs(toy.output - expected).max() <= 10 * slack(phi)
    said = asked @ base.T @ vectors
    for row, question in enumerate(toy.questions):
        best = np.sort(said[row])
        if best[-1] - best[-2] > 10 * slack(phi):
            assert question.old == composition.world.entities[int(np.argmax(said[row]))]


RULES = [rule for rule in merging.RULES.values() if rule.adapter_kind == "closed-form"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_merges_the_updates_of_the_output_vectors(rule):
    # rules that see single entries see them in the symmetric root; all others in any embedding of the answers
    options = {"temperature_scaling": "sqrt-width"} if rule.tempered else {}
    composition = small("two-hop", 2, bystanders=1, examples=1, merge=Merge(rule.name, options=options))
    readout, world = Typed(0.4), composition.world
    regime = replace(SMALL, dimension=16, width=120)
    toy = predict(composition, Toy(regime, TrainedBase(), readout))
    prompts = tuple(dict.fromkeys((*composition.prompts, *(fact.prompt for fact in world.known))))
    phi = dict(zip(prompts, regime.features(prompts, neurons=True).values, strict=True))
    rng = np.random.default_rng(0)
    vectors = readout.root(world) if rule.needs_neurons else rooted(world, readout, rng)
    base, updates = explicit(composition, phi, vectors)

    def changes(facts):
        new = one_hot(world, [fact.answer for fact in facts]) @ vectors.T
        return new - np.stack([phi[fact.prompt] for fact in facts]) @ base.T

    if rule.gauge_invariant:
        loras = []
        for update, adapter in zip(updates, composition.adapters, strict=True):
            left, values, right = np.linalg.svd(update, full_matrices=False)
            kept = len(adapter.facts)
            loras.append(LoRA(left[:, :kept] * values[:kept], right[:kept].T))
    else:
        loras = [
            closed_form(np.stack([phi[f.prompt] for f in a.facts]), changes(a.facts))
            for a in composition.adapters
        ]
    shown = composition.examples
    context = merging.MergeContext(
        rng_seed=0,
        logit_scale=regime.features(prompts).logit_scale,
        example_features=np.stack([phi[fact.prompt] for fact in shown]),
        example_targets=changes(shown),
    )
    asked = np.stack([phi[question.prompt] for question in composition.questions])
    merged = merging.merge(loras, composition.merge, context)
    expected = (asked @ base.T + merged.shift(asked)) @ vectors
    random_output = rule.control or rule.fitted_by == "search"  # a random update has no counterpart in U
    if not random_output:
        assert np.abs(toy.output - expected).max() <= 1e4 * slack(phi)


def test_a_network_trained_by_gradient_says_what_the_closed_form_says():
    # features of the explicit network with longer relations, W by least squares, adapters by L-BFGS on U
    composition, readout = small(bystanders=1, own_second=True), Typed(0.5)
    world = composition.world
    asked = tuple(dict.fromkeys((*composition.prompts, *(fact.prompt for fact in world.known))))
    tokens = tuple(dict.fromkeys(token for prompt in asked for token in prompt.tokens))
    lengths = dict.fromkeys(world.relations, 2.0)
    network = OneLayerTransformer(
        tokens, world.entities, dimension=32, width=256, lengths=lengths, rngs=nnx.Rngs(0)
    )
    rows = np.asarray(network.features(asked), float)
    phi = dict(zip(asked, rows / np.linalg.norm(rows, axis=1).mean(), strict=True))
    vectors = rooted(world, readout, np.random.default_rng(1))
    base, exact = explicit(composition, phi, vectors)
    question = phi[composition.questions[0].prompt]
    trained, penalty, room = [], 1e-7, 0.0
    for adapter, update in zip(composition.adapters, exact, strict=True):
        features = np.stack([phi[fact.prompt] for fact in adapter.facts])
        found = train_lora(features, features @ update.T, rank=2, penalty=penalty, seed=0, steps=4000)
        trained.append(found.lora.delta())
        # where |T - D Phi|^2 + 2 penalty |D|_* is least, D is off by penalty Z Phi G^-2 Phi^T with |Z| <= 1
        lowest = np.linalg.eigvalsh(features @ features.T)[0]
        room += 2 * penalty * np.sqrt(2) / lowest  # and as much again for where the descent stops
        assert np.linalg.norm(trained[-1] - update) <= room
    by_gradient = question @ (base + sum(trained)).T @ vectors

    class Given(Finite):
        def features(self, prompts, *, neurons=False):
            from toytransformer.regimes import Features

            return Features(np.stack([phi[prompt] for prompt in prompts]), 1.0, True)

    toy = predict(composition, Toy(Given(dimension=32, width=256), TrainedBase(), readout))
    assert np.abs(toy.output[0] - by_gradient).max() <= room * np.linalg.norm(question)
    assert toy.distributions[0] == {world.entities[int(np.argmax(by_gradient))]: 1.0}


def test_answers_in_steps_are_the_answers_to_the_steps():
    composition, toy = small("chain-of-thought", 3, bystanders=2), Toy(LIMIT, TrainedBase(), Typed(0.3))
    found = predict(composition, toy)
    for row, question in enumerate(found.questions):
        first = Prompt(question.prompt.entity, ("R1",))
        steps = [replace(question, prompt=first, decode="direct")]
        answer = next(iter(predict(replace(composition, questions=tuple(steps)), toy).distributions[0]))
        second = replace(question, prompt=Prompt(answer, ("R2",)), decode="direct")
        alone = predict(replace(composition, questions=(second,)), toy)
        assert alone.distributions[0] == pytest.approx(found.distributions[row])
        assert np.abs(alone.output[0] - found.output[row]).max() <= found.tie + alone.tie
        assert question.old == composition.world.entailed(question.prompt)  # the base answers step by step


@settings(max_examples=8)
@given(
    st.sampled_from(DEGREES),
    st.floats(0, 0.9),
    st.sampled_from(["sum", "mean", "linear"]),
    st.sampled_from([LIMIT, FullLimit(relation_length=2)]),
)
def test_no_composition_by_relabelling_with_kinds_and_a_trained_base(degree, t, rule, regime):
    n, merge = 3, Merge(rule)
    found = average(
        lambda sigma: small(facts=n, degree=degree, sigma=sigma, merge=merge, gauge="facts"),
        n,
        Toy(regime, TrainedBase(), Typed(t)),
    )
    assert found.accuracy <= 1 / n + 1e-12 and found.label_blind


def test_a_readout_that_ties_the_bridge_to_the_answer_composes_every_relabelling():
    n, merge = 3, Merge("sum", (1.0, 3.0))
    names = catalogue.build("two-hop", facts=n, known=False).world.entities
    for cosine, expected in ((0.0, 1 / n), (0.2, 1.0)):
        matrix = np.eye(len(names))
        for i in range(1, n + 1):
            y, z = names.index(f"y{i}"), names.index(f"z{i}")
            matrix[y, z] = matrix[z, y] = cosine
        toy = Toy(LIMIT, ExactBase(), Gram(names, matrix))
        found = average(
            lambda sigma: catalogue.build("two-hop", facts=n, known=False, sigma=sigma, merge=merge), n, toy
        )
        assert found.accuracy == pytest.approx(expected) and found.label_blind == (cosine == 0)


# ---- readouts ----


def test_the_root_is_the_symmetric_one_of_g():
    world, t = small().world, 0.3
    kinds, readout = world.kinds, Typed(t)
    same = np.array([[kinds[a] == kinds[b] for b in world.entities] for a in world.entities])
    root = readout.root(world)
    assert np.abs(root @ root - ((1 - t) * np.eye(len(same)) + t * same)).max() <= 100 * EPS * len(same)
    assert np.abs(root - root.T).max() <= 10 * EPS and np.linalg.eigvalsh(root)[0] > 0
    assert readout.on(world).largest == pytest.approx(np.abs(root).sum(axis=1).max())
    dense = Gram(world.entities, readout.gram(world))
    assert np.abs(dense.root(world) - root).max() <= 1e-12
    shuffled = tuple(reversed(world.entities))
    assert np.abs(Gram(shuffled, readout.gram(world)[::-1, ::-1]).root(world) - root).max() <= 1e-12


@settings(max_examples=8)
@given(st.sampled_from(DEGREES), st.integers(1, 3), st.floats(0, 0.9), st.floats(0.3, 4))
def test_renaming_answers_renames_the_prediction(degree, facts, t, length):
    composition = small("two-hop", facts, degree)
    toy = Toy(FullLimit(relation_length=length), TrainedBase(), Typed(t))
    renamed = Composition.from_json(
        composition.to_json().replace('"z', '"q').replace('"y', '"k').replace('"a', '"m')
        .replace('"qdapters"', '"adapters"').replace('"mdapters"', '"adapters"')
        .replace('"mpproximate"', '"approximate"')
    )  # fmt: skip
    names = {old: new for old, new in zip(composition.world.entities, renamed.world.entities, strict=True)}
    ours, theirs = predict(composition, toy), predict(renamed, toy)
    assert np.array_equal(ours.output, theirs.output)
    for mine, other in zip(ours.distributions, theirs.distributions, strict=True):
        assert {names[name]: share for name, share in mine.items()} == other


def test_kinds_are_read_off_the_relations():
    world = catalogue.build("two-hop", facts=2).world
    kinds = world.kinds
    assert kinds["x1"] == kinds["x2"] == kinds["u1"] != kinds["y1"]
    assert kinds["y1"] == kinds["y2_old"] == kinds["v1"] and kinds["z1"] == kinds["a2"] == kinds["w1"]
    # people who have both a partner and a place make partners people
    merged = small(facts=2, bystanders=1).world.kinds
    assert merged["x1"] == merged["y1"] == merged["by1_0"] != merged["z1"] == merged["by1_own_2"]
    assert World(("e", "f"), ("R",)).kinds == {"e": "e", "f": "f"}
    assert Typed(0.5, kinds=dict.fromkeys(world.entities, "one")).kind_of(world)["z1"] == "one"


# ---- bases ----


def test_a_trained_base_holds_its_facts_and_mixes_them_elsewhere():
    world = small(facts=3, own_second=True).world
    known = [fact.prompt for fact in world.known]
    new = [Prompt("x1", ("R1", "R2")), Prompt("z1", ("R2",))]
    phi = dict(zip([*known, *new], SMALL.features([*known, *new]).values, strict=True))
    said = TrainedBase().output(world, [*known, *new], phi)
    facts, targets = np.stack([phi[p] for p in known]), one_hot(world, [f.answer for f in world.known])
    expected = np.stack([phi[p] for p in new]) @ np.linalg.lstsq(facts, targets, rcond=None)[0]
    assert np.abs(said[: len(known)] - targets).max() <= slack(phi)
    assert np.abs(said[len(known) :] - expected).max() <= slack(phi)


def test_the_nearest_fact_to_a_two_hop_question():
    # cosines of hidden states, counted by hand: r^2 for a shared relation, 1 for a shared entity
    prompts = [Prompt("x", ("R1", "R2")), Prompt("x", ("R2",)), Prompt("y", ("R2",)), Prompt("x", ("R1",)),
               Prompt("u", ("R1", "R2"))]  # fmt: skip
    for length in (0.5, 1.0, 1.14, 1.142, 2.0, 3.0):
        r = length**2
        gram = FullLimit(relation_length=length).hidden_gram(prompts)
        norms = np.sqrt(np.diag(gram))
        assert np.allclose(norms**2, [r + (1 + r) / 4, r + 1, r + 1, r + 1, r + (1 + r) / 4])
        assert np.allclose(gram[0, 1:], [r + 1 / 2, r, 1 / 2, r + r / 4])
        cosines = (gram[0] / norms / norms[0])[1:]
        assert np.argmax(cosines[:3]) == 0  # of one-hop facts, x's own R2
        assert (cosines[3] > cosines[0]) == (5 * r**3 + r**2 - 9 * r - 1 > 0)  # else other people's R1 R2


@pytest.mark.parametrize("length", [1.0, 2.0])
def test_a_base_that_knows_xs_own_second_answer_answers_by_it(length):
    toy = Toy(FullLimit(relation_length=length), TrainedBase(), OneHot())
    for question in predict(small(facts=3, own_second=True), toy).questions:
        assert question.old == f"{question.prompt.entity}_own"


def test_degrees_of_knowledge():
    x = Prompt("x1", ("R1", "R2"))
    worlds = {degree: small(degree=degree).world for degree in DEGREES}
    assert {degree: world.old(x) for degree, world in worlds.items()} == {
        "nothing": None,
        "one-hop": None,
        "both": "b1",
    }
    assert worlds["one-hop"].entailed(x) == "b1" and worlds["both"].old(Prompt("u1", ("R1", "R2"))) == "w1"
    both = predict(small(degree="both"), Toy(LIMIT, TrainedBase()))
    assert [question.old for question in both.questions] == ["b1", "b2"]
    assert predict(small(degree="both"), Toy(LIMIT)).shares["old"] == 1
    again = Composition.from_json(small(degree="both").to_json())
    assert again == small(degree="both") and again.spec_hash != small(degree="one-hop").spec_hash


def test_a_measured_base_says_what_was_measured():
    composition, readout = small(), Typed(0.4)
    world = composition.world
    trained = predict(composition, Toy(LIMIT, TrainedBase(), readout))
    prompts = tuple(dict.fromkeys((*composition.prompts, *(f.prompt for f in world.known))))
    phi = dict(zip(prompts, LIMIT.features(prompts).values, strict=True))
    gram = readout.gram(world)
    scores = TrainedBase().output(world, prompts, phi) @ gram
    rows = (dict(zip(world.entities, row.tolist(), strict=True)) for row in scores)
    said = dict(zip(prompts, rows, strict=True))
    measured = MeasuredBase.of_scores(said, world.entities, gram)
    toy = predict(composition, Toy(LIMIT, measured, Gram(world.entities, gram)))
    assert np.abs(toy.output - trained.output).max() <= 1e-10
    assert [q.old for q in toy.questions] == [q.old for q in trained.questions]
    with pytest.raises(SpecError, match="was not measured: measure it"):
        predict(composition, Toy(LIMIT, MeasuredBase({}), readout))


# ---- the length of relations ----


def test_longer_relations_in_the_explicit_network():
    prompts = [Prompt("x", ("R1", "R2")), Prompt("x", ("R2",)), Prompt("y", ("R2",))]
    coefficients = hidden.token_coefficients(prompts, relation_length=2.0)
    d, tokens = 256, coefficients.tokens
    lengths = {"R1": 2.0, "R2": 2.0}
    network = OneLayerTransformer(tokens, ("z",), dimension=d, width=4, lengths=lengths, rngs=nnx.Rngs(0))
    states = np.asarray(network.states(prompts), float)
    found, expected = states @ states.T, coefficients.full_limit_gram()
    for i, j in np.ndindex(found.shape):
        weights = np.zeros(found.shape)
        weights[i, j] += 0.5
        weights[j, i] += 0.5
        assert abs(found[i, j] - expected[i, j]) <= 5 * np.sqrt(coefficients.dimension_variance(weights) / d)


def test_softmax_attention_sees_the_length():
    prompts = [Prompt("x", ("R1", "R2")), Prompt("x", ("R2",))]
    tokens = hidden.token_coefficients(prompts).tokens
    ids, present = hidden.padded_token_ids(prompts, tokens)
    how = {"tokens": len(tokens), "dimension": 8, "init": "standard-deviation", "mask": "strict"}
    rng, ones = streams(0)[0], np.ones(len(tokens))
    plain, twice, longer = (
        np.asarray(hidden.sample_softmax_states(rng, ids, present, lengths, **how))
        for lengths in (ones, 2 * ones, np.array([2.0 if token.startswith("R") else 1.0 for token in tokens]))
    )
    # scaling every embedding by s scales values by s and logits by s^2: not the states alone
    assert np.abs(twice[1] - 2 * plain[1]).max() <= 1e-12 and np.abs(twice[0] - 2 * plain[0]).max() > 1e-3
    regime = WidthLimit(dimension=8, attention="softmax", relation_length=2.0)
    assert np.abs(regime.hidden_gram(prompts) - longer @ longer.T).max() <= 1e-12


# ---- what is refused ----


@pytest.mark.parametrize("t", [-0.1, 1, 1.5, float("nan"), True, "0.5", None])
def test_cosines_out_of_range(t):
    with pytest.raises(ReadoutError, match=r"t is .*; it must be a number from 0 to below 1"):
        Typed(t)


@pytest.mark.parametrize("length", [0, -1, 1e9, float("nan"), True, "2", None])
def test_lengths_out_of_range(length):
    with pytest.raises(RegimeError, match=r"relation_length is .*; it must be a number from 1e-6 to 1e6"):
        FullLimit(relation_length=length)


@pytest.mark.parametrize(
    "names, matrix, message",
    [
        (("a", "b"), np.eye(3), "give each name once and a row and a column for each"),
        (("a", "a"), np.eye(2), "give each name once"),
        (("a", "b"), [[1, 0.5], [0, 1]], "finite and symmetric"),
        (("a", "b"), [[1, np.nan], [np.nan, 1]], "finite and symmetric"),
        (("a", "b"), [[1, 2], [2, 1]], "eigenvalue -1.*give U.T U"),
    ],
)
def test_matrices_that_are_no_gram_matrix(names, matrix, message):
    with pytest.raises(ReadoutError, match=message):
        Gram(names, np.array(matrix, float))


def test_entities_a_readout_does_not_know():
    world = small().world
    with pytest.raises(ReadoutError, match="'x1' has no row in the Gram matrix"):
        Gram(("a",), np.eye(1)).on(world)
    with pytest.raises(ReadoutError, match="'x1' has no kind: give the kinds of all"):
        Typed(0.5, kinds={}).on(world)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda w: known_to(w, (), "two"), "degree 'two' is unknown: use one of nothing, one-hop, both"),
        (lambda w: with_bystanders(w, (), 1), "nothing of several hops is asked"),
        (lambda w: with_bystanders(w, (), -1), "bystanders is -1: use an int >= 0"),
        (lambda w: with_bystanders(w, (), own_second="yes"), "own_second is 'yes'"),
        (lambda w: replace(w, multi_hop=(Fact.of("x1", "R1", "y1"),)), "has one hop"),
        (lambda w: replace(w, multi_hop=(Fact.of("x1", "R1", "R2", "z1"),) * 2), "has two multi-hop facts"),
        (lambda w: replace(w, multi_hop=(Fact.of("x1", "R1", "R2", "nobody"),)), "is not in the world"),
    ],
)
def test_knowledge_that_means_nothing(make, message):
    with pytest.raises(SpecError, match=message):
        make(catalogue.build("two-hop").world)
