"""Bridges in the toy: solutions in fractions, z3's search for a bridge that helps, dense predictions."""

from fractions import Fraction

import numpy as np
import pytest
import sympy
import z3
from counterexamples import find, refute
from hypothesis import given
from hypothesis import strategies as st

from toytransformer.adapters import closed_form
from toytransformer.compositions import Prompt
from toytransformer.ledger.bridges import sizes
from toytransformer.ledger.pair import C1, C2, FAR, LEAK, LIMIT, SHARED
from toytransformer.ledger.registry import Run

EPS = np.finfo(float).eps


def coefficients(first, second, own, s, leak, c1, c2, far):
    """G^-1 k of x R1 R2 for `first` facts under R1 and `second` under R2, in fractions; own: 0 is x's."""
    count = first + second
    gram = sympy.Matrix(count, count, lambda i, j: 1 if i == j else s if (i < first) == (j < first) else leak)
    seen = [c1 if own and i == 0 else far if i < first else c2 for i in range(count)]
    return list(gram.LUsolve(sympy.Matrix(seen)))


def kernel(draw):
    """S, L, c1, c2 and far as the theorem has them."""
    part = st.fractions(Fraction(1, 20), Fraction(19, 20), max_denominator=20)
    s = draw(part)
    leak = s * draw(part)
    c1 = draw(part)
    far = s * c1 + draw(part)
    c2 = leak * far / s + draw(part)
    return [sympy.Rational(v.numerator, v.denominator) for v in (s, leak, c1, c2, far)]


@given(st.data(), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2))
def test_a_bridge_never_raises_y_and_costs_a_constant_over_n(data, n, more, seconds):
    s, leak, c1, c2, far = k = kernel(data.draw)
    plain = coefficients(n, 0, True, *k)[0]
    bridged = coefficients(n + more, seconds, True, *k)[0]
    own = (c1 - far) / (1 - s)
    most = (far - s * own) / s + leak * (c2 - leak * own) / (s**2 - leak**2)
    assert 0 <= plain - bridged <= most / n


@given(st.data(), st.integers(1, 3), st.integers(0, 2), st.integers(0, 3))
def test_z_falls_exactly_where_said(data, n, firsts, seconds):
    s, leak, _, c2, far = k = kernel(data.draw)
    plain = coefficients(0, n, False, *k)[-1]
    bridged = coefficients(firsts, n + seconds, False, *k)[-1]
    gain = c2 * leak**2 * n * firsts
    loss = c2 * s * (1 - s) * seconds + c2 * (s**2 - leak**2) * firsts * seconds
    assert (bridged <= plain) == (gain <= loss + leak * firsts * far * (1 - s + s * n))


def test_z3_finds_no_bridge_that_raises_y():
    s, leak, c1, c2, far = z3.Reals("S L c1 c2 far")
    own, o1, o2 = z3.Reals("A g1 g2")
    shape = [s > 0, s < 1, leak >= 0, leak <= s, c1 > 0, far > 0, c2 > 0, own * (1 - s) == c1 - far]

    def equations(first, second, g1, g2):
        total1, total2 = own + first * g1, second * g2
        return [
            (1 - s) * g1 + s * total1 + leak * total2 == far,
            (1 - s) * g2 + s * total2 + leak * total1 == c2,
        ]

    p1, p2 = z3.Reals("p1 p2")
    plain, bridged = equations(1, 0, p1, p2), equations(2, 0, o1, o2)
    refute(*shape, *plain[:1], *bridged[:1], s * c1 <= far, o1 > p1)
    find(*shape, *plain[:1], *bridged[:1], s * c1 > far, o1 > p1)  # beyond the condition a bridge helps
    with_answers = equations(1, 1, o1, o2)
    refute(*shape, *plain[:1], *with_answers, s * c1 <= far, leak * far <= s * c2, o1 > p1)


def test_dense_adapters_agree():
    """Adapters fitted on features of the limit, read fact by fact."""
    k = [sympy.Float(v, 30) for v in (SHARED, LEAK, C1, C2, FAR)]
    for n, firsts, seconds in ((2, 2, 2), (5, 1, 3)):
        stored = [("x", "R1"), *((f"p{i}", "R1") for i in range(n + firsts - 1))]
        stored += [(f"q{i}", "R2") for i in range(seconds)]
        prompts = [Prompt(entity, (relation,)) for entity, relation in stored]
        phi = LIMIT.features([*prompts, Prompt("x", ("R1", "R2"))]).values
        found = closed_form(phi[:-1], np.eye(len(stored))).shift(phi[-1:])[0]
        expected = np.array(coefficients(n + firsts, seconds, True, *k), float)
        assert np.abs(found - expected).max() <= 1e4 * EPS


@pytest.mark.parametrize("seed", [0, 1])
def test_the_ledger_agrees(seed):
    rows = list(sizes(Run(seed=seed)))
    assert all(row.verdict == "holds" for row in rows)
    assert {row.measured for row in rows if "does z fall" in row.claim} == {"True", "False"}
