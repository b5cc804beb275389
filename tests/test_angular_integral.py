"""The integral behind the kernel, on paper: rotation invariance, the radial moment, the angular integral.

For u ~ N(0, I) and t the angle between x and x',

    E[relu(u.x) relu(u.x')] = |x| |x'| E[r^2] / (2 pi) int_{t - pi/2}^{pi/2} cos s cos(s - t) ds,  E[r^2] = 2.

Each step is shown by SymPy to be an identity (a difference simplified to zero) and by mpmath to 30 digits.
The formulas are those of toytransformer.kernel itself: two fixtures run its code on the numbers of SymPy or
of mpmath in place of arrays.
"""

from types import SimpleNamespace

import mpmath as mp
import numpy as np
import pytest
import sympy as sp

from toytransformer import hidden, kernel
from toytransformer.compositions import Prompt
from toytransformer.regimes import FullLimit

EPS = np.finfo(float).eps
DIGITS = 30
#: Powers p, q of E[relu(a)^p relu(b)^q], and the kernel's formula.
MOMENTS = {(1, 1): kernel.moment_11, (2, 2): kernel.moment_22, (3, 1): kernel.moment_31}
#: eta_1 = (x, R1), eta_2 = (y, R2), xi = (x, R1, R2).
PROMPTS = (Prompt("x", ("R1",)), Prompt("y", ("R2",)), Prompt("x", ("R1", "R2")))
#: |eta|^2, eta.xi, |xi|^2 in the full limit, strict mask.
HALF = sp.Rational(1, 2)
PLANE = {"c1": (2, HALF, 3 * HALF), "c2": (2, 1, 3 * HALF)}
C1 = "0.412232302217758644126438342728"
C2 = "0.573035717046928334931513687557"

s, t = sp.symbols("s t", real=True)
r, g = sp.symbols("r g", positive=True)


def rational(expression):
    """The kernel's 1.0 and 0.5 as the fractions they are."""
    return sp.nsimplify(expression, rational=True)


def use(monkeypatch, library, pi, infinity, clean=lambda number: number):
    def wrapped(name):
        return lambda number: getattr(library, name)(clean(number))

    names = {name: wrapped(name) for name in ("sqrt", "sin", "cos", "acos")}
    names["clip"] = lambda number, low, high: number
    monkeypatch.setattr(kernel, "array_namespace", lambda *arrays: SimpleNamespace(**names))
    monkeypatch.setattr(kernel, "math", SimpleNamespace(pi=pi, inf=infinity))


@pytest.fixture
def symbols(monkeypatch):
    """The kernel's code on SymPy's expressions."""
    use(monkeypatch, sp, sp.pi, sp.oo, clean=rational)


@pytest.fixture
def numbers(monkeypatch):
    """The kernel's code on mpmath's numbers, with 15 digits to spare."""
    with mp.workdps(DIGITS + 15):
        use(monkeypatch, mp, +mp.pi, mp.inf)
        yield


def vanishes(expression):
    """Whether SymPy simplifies a trigonometric expression to zero."""
    return sp.simplify(sp.expand(rational(expression).rewrite(sp.exp))) == 0


def close(one, other, digits=DIGITS):
    return abs(one - other) < mp.mpf(10) ** -digits


def precise(value):
    """An exact number of SymPy's in mpmath's numbers, at the digits of the moment."""
    return mp.mpmathify(sp.N(value, mp.mp.dps))


def test_a_wrong_identity_does_not_vanish():
    assert vanishes(sp.sin(t) ** 2 + sp.cos(t) ** 2 - 1.0)
    assert not vanishes(sp.sin(t) ** 2 + sp.cos(t) ** 2 - 0.5)
    with mp.workdps(DIGITS + 15):
        assert not close(mp.mpf(1), 1 + mp.mpf(10) ** -29) and close(mp.mpf(1), 1 + mp.mpf(10) ** -31)


# ---- rotation invariance: only the plane of x and x' matters ----


def test_the_characteristic_function_of_one_gaussian():
    w, v = sp.symbols("w v", real=True)
    single = sp.integrate(sp.exp(sp.I * w * v - v**2 / 2), (v, -sp.oo, sp.oo)) / sp.sqrt(2 * sp.pi)
    assert sp.simplify(single - sp.exp(-(w**2) / 2)) == 0


@pytest.mark.parametrize("dimension", [2, 3, 5])
def test_a_gaussian_looks_the_same_in_any_plane(dimension):
    # a u.f + b u.f' has the characteristic function exp(-|a f + b f'|^2 / 2), for orthonormal f, f' that is
    # exp(-(a^2 + b^2) / 2): two independent Gaussians. Here f = x/|x| and f' = rest/|rest| span the plane.
    x, other = (sp.Matrix(sp.symbols(f"{name}:{dimension}", real=True)) for name in "xy")
    square, inner = x.dot(x), x.dot(other)
    rest = square * other - inner * x
    assert sp.expand(rest.dot(x)) == 0
    # x' = (x.x' x + rest) / |x|^2 and |rest| = |x|^2 |x'| sin t, so u.x' = |x'| (cos t u.f + sin t u.f')
    assert sp.expand(rest.dot(rest) - square * (square * other.dot(other) - inner**2)) == 0
    assert (inner * x + rest - square * other).applyfunc(sp.expand) == sp.zeros(dimension, 1)


def test_polar_coordinates_in_that_plane():
    # the density of (u.x/|x|, u.x'/|x'|) at (r cos s, r cos(s - t)), times the Jacobian: r exp(-r^2/2)/(2 pi)
    a, b = r * sp.cos(s), r * sp.cos(s - t)
    form = a**2 - 2 * sp.cos(t) * a * b + b**2
    assert vanishes(form - r**2 * sp.sin(t) ** 2)
    jacobian = sp.Matrix([a, b]).jacobian([r, s]).det()
    assert vanishes(jacobian - r * sp.sin(t))
    assert not vanishes(jacobian - r)


@pytest.mark.parametrize("power, moment", [(0, 1), (2, 2), (4, 8)])
def test_radial_moments(power, moment, numbers):
    density = r * sp.exp(-(r**2) / 2)
    assert sp.integrate(r**power * density, (r, 0, sp.oo)) == moment
    assert close(mp.quad(lambda x: x ** (power + 1) * mp.exp(-x * x / 2), [0, 2, 6, 24]), moment)


# ---- the angular integral ----


def antiderivative(p, q):
    return sp.integrate(sp.expand((sp.cos(s) ** p * sp.cos(s - t) ** q).rewrite(sp.exp)), s)


def test_angular_integral_by_its_antiderivative():
    # the one of the machine-checked angular_integral
    primitive = (s * sp.cos(t) + sp.sin(2 * s - t) / 2) / 2
    assert vanishes(sp.diff(primitive, s) - sp.cos(s) * sp.cos(s - t))
    integral = primitive.subs(s, sp.pi / 2) - primitive.subs(s, t - sp.pi / 2)
    assert vanishes(integral - (sp.sin(t) + (sp.pi - t) * sp.cos(t)) / 2)
    assert not vanishes(integral - (sp.sin(t) + sp.pi * sp.cos(t)) / 2)


@pytest.mark.parametrize("p, q", MOMENTS)
def test_moments_are_radial_times_angular(p, q, symbols):
    primitive = antiderivative(p, q)
    assert vanishes(sp.diff(primitive, s) - sp.cos(s) ** p * sp.cos(s - t) ** q)
    angular = primitive.subs(s, sp.pi / 2) - primitive.subs(s, t - sp.pi / 2)
    radial = sp.integrate(r ** (p + q + 1) * sp.exp(-(r**2) / 2), (r, 0, sp.oo))
    assert vanishes(radial * angular / (2 * sp.pi) - MOMENTS[p, q](t))


def test_kappa_is_twice_the_moment(symbols):
    kappa = kernel.kappa(g)  # at a cosine g
    assert sp.simplify(rational(kappa - 2 * kernel.moment_11(sp.acos(g)))) == 0
    assert sp.simplify(rational(sp.diff(kappa, g)) - (sp.pi - sp.acos(g)) / sp.pi) == 0


def test_slopes_of_an_overlap(symbols):
    entries = key, inner, query = sp.symbols("key inner query", positive=True)
    overlap = kernel.overlap(*entries)
    for entry, stated in zip(entries, kernel.overlap_gradient(*entries), strict=True):
        difference = rational(sp.diff(overlap, entry) - stated).subs(inner, g * sp.sqrt(key * query))
        assert sp.simplify(difference) == 0


def polar_mean(p, q, angle):
    """E[relu(a)^p relu(b)^q]: E r^(p + q) times the mean over the angle, by quadrature."""
    radial = 2 ** (mp.mpf(p + q) / 2) * mp.gamma(1 + mp.mpf(p + q) / 2)
    angular = mp.quad(lambda x: mp.cos(x) ** p * mp.cos(x - angle) ** q, [angle - mp.pi / 2, mp.pi / 2])
    return radial * angular / (2 * mp.pi)


ANGLES = ("0.1", "0.7", "1.5707963", "2.2", "3.0")


@pytest.mark.parametrize("angle", ANGLES)
def test_the_integral_to_30_digits(angle, numbers):
    angle = mp.mpf(angle)
    c, sine = mp.cos(angle), mp.sin(angle)
    formula = kernel.moment_11(angle)
    for (p, q), moment in MOMENTS.items():
        assert close(polar_mean(p, q, angle), moment(angle))

    # no polar coordinates: E[relu(a) E[relu(c a + sin t g) | a]], the inner mean by the normal distribution
    def outer(a):
        mean = c * a / sine
        return a * mp.npdf(a) * sine * (mean * mp.ncdf(mean) + mp.npdf(mean))

    assert close(mp.quad(outer, mp.linspace(0, 20, 21)), formula)
    # no integral: kappa(c) = c/2 + 2F1(-1/2, -1/2; 1/2; c^2)/pi
    assert close(c / 2 + mp.hyp2f1(-0.5, -0.5, 0.5, c * c) / mp.pi, kernel.kappa(c))
    assert close(2 * formula, kernel.kappa(c))


@pytest.mark.parametrize("angle", ANGLES)
def test_the_package_computes_it_to_float64(angle):
    value = np.float64(angle)
    with mp.workdps(DIGITS):
        point = mp.mpf(float(value))
        exact = (mp.sin(point) + (mp.pi - point) * mp.cos(point)) / mp.pi
    assert abs(2 * kernel.moment_11(value) - float(exact)) <= 10 * EPS
    assert abs(kernel.kappa(np.cos(value)) - float(exact)) <= 10 * EPS


# ---- the constants ----

#: Name, the kernel's arguments |key|^2, key.query, |query|^2, and the closed form.
CLOSED = {
    "c1": (*PLANE["c1"], (sp.sqrt(11) + sp.pi - sp.atan(sp.sqrt(11))) / (4 * sp.pi)),
    "c2": (*PLANE["c2"], (sp.sqrt(2) + sp.pi - sp.atan(sp.sqrt(2))) / (2 * sp.pi)),
    "leak, nothing shared": (2, 0, 2, 1 / sp.pi),
    "leak, a token shared": (2, 1, 2, sp.sqrt(3) / (2 * sp.pi) + sp.Rational(1, 3)),
    "leak onto another two-hop prompt": (2, 0, 3 * HALF, sp.sqrt(3) / (2 * sp.pi)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_constants_in_closed_form(name, symbols):
    *arguments, stated = CLOSED[name]
    value = kernel.overlap(*map(sp.sympify, arguments))
    assert sp.simplify((rational(value) - stated).rewrite(sp.atan)) == 0


@pytest.mark.parametrize("name, digits", [("c1", C1), ("c2", C2)])
def test_c1_and_c2_to_30_digits(name, digits, numbers):
    key, inner, query = map(precise, PLANE[name])
    value = kernel.overlap(key, inner, query)
    assert close(value, precise(CLOSED[name][-1])) and close(value, mp.mpf(digits))
    # k(eta, xi) / k(eta, eta) with each kernel an integral over the angle
    angle = mp.acos(inner / mp.sqrt(key * query))
    assert close(mp.sqrt(query / key) * polar_mean(1, 1, angle) / polar_mean(1, 1, 0), value)


def test_the_full_limit_has_these_constants():
    # from prompts, through token counts, the kernel and a square root of the Gram matrix
    states = FullLimit().hidden_gram(PROMPTS)
    gram = FullLimit().gram(PROMPTS)
    phi = FullLimit().features(PROMPTS).values
    for row, (name, digits) in enumerate([("c1", C1), ("c2", C2)]):
        entries = states[row, row], states[row, 2], states[2, 2]
        assert entries == tuple(map(float, PLANE[name]))
        for value in (
            kernel.overlap(*map(np.asarray, entries)),
            gram[row, 2] / gram[row, row],
            phi[row] @ phi[2] / (phi[row] @ phi[row]),
        ):
            assert abs(value - float(digits)) <= 10 * EPS


def test_what_the_theory_derives_from_them(numbers):
    c1, c2 = mp.mpf(C1), mp.mpf(C2)
    shared = mp.sqrt(3) / (2 * mp.pi) + mp.mpf(1) / 3
    assert mp.nstr(1 / c2, 5) == "1.7451"
    assert mp.nstr((c1 - mp.sqrt(3) / (2 * mp.pi)) / (1 - shared), 5) == "0.34928"
    # the standard error of c1 at one neuron, from integrals alone: Var[a b - c a^2] / E[a^2]^2
    key, inner, query = map(precise, PLANE["c1"])
    angle, ratio = mp.acos(inner / mp.sqrt(key * query)), mp.sqrt(query / key)

    def mean(p, q):
        return ratio**q * polar_mean(p, q, angle)

    square, fourth = mp.mpf(1) / 2, mp.mpf(3) / 2  # E relu(a)^2 and E relu(a)^4
    variance = mean(2, 2) - 2 * c1 * mean(3, 1) + c1**2 * fourth - (mean(1, 1) - c1 * square) ** 2
    error = mp.sqrt(variance) / square
    assert close(error, kernel.overlap_standard_error(key, inner, query, 1))
    assert mp.nstr(error, 4) == "0.9019"


def test_the_mask_that_sees_the_current_position(numbers):
    # theory.md, R2, mask "causal"
    coefficients = hidden.token_coefficients(PROMPTS, "causal").full_limit_gram()
    third = mp.mpf(1) / 3
    exact = {0: (mp.mpf(3) / 2, third, 4 * third), 1: (mp.mpf(3) / 2, 7 * third / 2, 4 * third)}
    for row, printed in ((0, "0.41959"), (1, "0.79869")):
        entries = coefficients[row, row], coefficients[row, 2], coefficients[2, 2]
        assert all(abs(a - float(b)) <= 10 * EPS for a, b in zip(entries, exact[row], strict=True))
        assert mp.nstr(kernel.overlap(*exact[row]), 5) == printed
