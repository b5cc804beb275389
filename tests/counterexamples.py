"""Asking z3 for a counterexample, in exact real arithmetic."""

from fractions import Fraction

import z3

#: z3's own measure of work, the same on every machine; the hardest question here needs a fiftieth of it.
EFFORT = 50_000_000


def ask(*claims, effort=EFFORT):
    """A model of all claims, or None if there is none; giving up is an error."""
    solver = z3.Solver()
    solver.set("rlimit", effort)
    solver.add(*claims)
    answer = solver.check()
    assert answer in (z3.sat, z3.unsat), f"z3 gave up: {solver.reason_unknown()}"
    return solver.model() if answer == z3.sat else None


def refute(*claims):
    """No case of all claims; all but the last have one, as contradicting hypotheses would refute anything."""
    find(*claims[:-1])
    model = ask(*claims)
    assert model is None, f"there is such a case: {model}"


def find(*claims):
    model = ask(*claims)
    assert model is not None, "there is no such case"
    return model


def exact(model, unknown):
    """The value of an unknown as a fraction."""
    value = model.eval(unknown, model_completion=True)
    assert z3.is_rational_value(value) or z3.is_int_value(value), f"{unknown} = {value} is no fraction"
    return Fraction(value.as_fraction()) if z3.is_rational_value(value) else Fraction(value.as_long())
