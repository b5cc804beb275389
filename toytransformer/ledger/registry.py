"""The registry of claims: what the theory says, checked by running it, one row each.

A check is a function that yields rows. It says where its claim stands, in which regime it is checked, and
by which kind of tolerance, and computes both sides itself: nothing is read from a stored result.

    @claim("closed form of one fact", source="Prop. 1, eq. 1", proof="Proposition1.proposition1_bound")
    def prop1_closed_form(run: Run) -> Iterator[Row]:
        yield close("least penalty", expected, measured, algebraic(scale=expected), regime="finite")
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace

import numpy as np

from toytransformer import interrupts

EPS = 2.0**-52

#: A number of Python or of NumPy.
Number = float | np.floating

#: The three kinds of tolerance of this project, and exact comparison.
KINDS = ("exact", "algebraic", "statistical", "asymptotic")


@dataclass(frozen=True)
class Tolerance:
    """How far measured may be from expected, and why. `reason` says how the number was derived."""

    size: float
    kind: str
    reason: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not (math.isfinite(self.size) and self.size >= 0):
            raise ValueError(
                f"{self} is not a tolerance: a finite size >= 0 and a kind of {', '.join(KINDS)}"
            )


def algebraic(scale: Number = 1.0, operations: float = 1e4) -> Tolerance:
    """Rounding: eps * operations * scale, for a float64 result of about that many dependent operations."""
    return Tolerance(
        EPS * operations * abs(float(scale)),
        "algebraic",
        f"eps x {operations:.0e} operations x scale {abs(scale):.3g}",
    )


def printed(digits: int) -> Tolerance:
    """Half a unit of the last of the digits a constant is quoted with, behind the decimal point."""
    return Tolerance(
        0.5 * 10.0**-digits, "algebraic", f"half a unit of the {digits} decimals the source prints"
    )


def solver(size: Number, reason: str) -> Tolerance:
    """What an iterative solver leaves: the accuracy it was asked for, carried to the quantity compared."""
    return Tolerance(float(size), "algebraic", reason)


def statistical(standard_error: Number, sigmas: float = 5.0) -> Tolerance:
    """Five derived standard errors (never estimated from the very deviation that is being judged)."""
    return Tolerance(
        float(sigmas * standard_error),
        "statistical",
        f"{sigmas:g} derived standard errors of {standard_error:.2e}",
    )


def asymptotic(size: Number, reason: str) -> Tolerance:
    """Room around a fitted slope or a limit that is approached, with the reason for its size."""
    return Tolerance(float(size), "asymptotic", reason)


EXACT = Tolerance(0.0, "exact", "counts and categories are compared exactly")


@dataclass(frozen=True)
class Row:
    """One line of the ledger. verdict: "holds" or "fails"; reason: how the tolerance was derived.

    note: where the paper's statement is not what holds, both ("paper: ...; true: ...").
    """

    claim: str
    source: str
    regime: str
    expected: float | str
    measured: float | str
    tolerance: float
    tolerance_kind: str
    verdict: str
    note: str = ""
    proof: str = ""
    reason: str = ""

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Run:
    """What a check may depend on. thorough: larger sizes and more repeats."""

    seed: int = 0
    thorough: bool = False


@dataclass(frozen=True)
class Claim:
    name: str
    source: str
    proof: str
    check: Callable[[Run], Iterator[Row]]


CLAIMS: list[Claim] = []


def claim(name: str, *, source: str, proof: str = "") -> Callable:
    """Register a check. source: equation or section.

    proof: its machine-checked theorems, if any: "File.theorem" of proofs/theories, separated by commas.
    """

    def register(check: Callable[[Run], Iterator[Row]]) -> Callable[[Run], Iterator[Row]]:
        CLAIMS.append(Claim(name, source, proof, check))
        return check

    return register


def close(
    claim: str, expected: Number, measured: Number, tolerance: Tolerance, *, regime: str, note: str = ""
) -> Row:
    """|measured - expected| <= tolerance."""
    holds = math.isfinite(measured) and abs(float(measured) - float(expected)) <= tolerance.size
    return _row(claim, float(expected), float(measured), tolerance, holds, regime, note)


def at_most(
    claim: str, bound: Number, measured: Number, tolerance: Tolerance, *, regime: str, note: str = ""
) -> Row:
    """measured <= bound + tolerance; `expected` is printed as the bound."""
    holds = math.isfinite(measured) and float(measured) <= float(bound) + tolerance.size
    return _row(claim, f"<= {bound:.6g}", float(measured), tolerance, holds, regime, note)


def at_least(
    claim: str, bound: Number, measured: Number, tolerance: Tolerance, *, regime: str, note: str = ""
) -> Row:
    """measured >= bound - tolerance; `expected` is printed as the bound."""
    holds = math.isfinite(measured) and float(measured) >= float(bound) - tolerance.size
    return _row(claim, f">= {bound:.6g}", float(measured), tolerance, holds, regime, note)


def same(claim: str, expected: object, measured: object, *, regime: str, note: str = "") -> Row:
    """Counts, categories and yes/no statements, compared exactly."""
    return _row(claim, str(expected), str(measured), EXACT, expected == measured, regime, note)


def _row(
    claim: str,
    expected: float | str,
    measured: float | str,
    tolerance: Tolerance,
    holds: bool,
    regime: str,
    note: str,
) -> Row:
    verdict = "holds" if holds else "fails"
    return Row(
        claim,
        "",
        regime,
        expected,
        measured,
        tolerance.size,
        tolerance.kind,
        verdict,
        note,
        reason=tolerance.reason,
    )


def verify(run: Run, jobs: int = 1) -> Iterator[Row]:
    """Every row of every claim, in the order of the ledger, as soon as it is computed.

    jobs: processes beside this one that check claims; with one there are none. The rows are the same.
    A check that raises, or that finds nothing to check, is a failed row and not the end of the ledger.
    """
    if jobs == 1:
        for entry in CLAIMS:
            yield from checked(entry, run)
        return
    # Imported anew in each of them: JAX's threads do not survive a fork.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, fresh, _begin) as pool:
        with interrupts.held():  # the processes begin here
            claims = [pool.submit(rows_of, number, run) for number in range(len(CLAIMS))]
        for entry, rows in zip(CLAIMS, claims, strict=True):
            try:
                yield from rows.result()
            except BrokenProcessPool:
                yield _failed(entry, "its process was killed")


def checked(entry: Claim, run: Run) -> Iterator[Row]:
    """The rows of one claim."""
    count = 0
    try:
        for count, row in enumerate(entry.check(run), start=1):  # noqa: B007
            yield replace(row, claim=f"{entry.name}: {row.claim}", source=entry.source, proof=entry.proof)
        problem = None if count else "no rows"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        yield _failed(entry, problem)


def _failed(entry: Claim, problem: str) -> Row:
    row = _row(entry.name, "runs", problem, EXACT, False, "", "the check itself failed")
    return replace(row, source=entry.source, proof=entry.proof)


def _begin() -> None:
    interrupts.begin_worker()
    import jax

    jax.config.update("jax_enable_x64", True)


def rows_of(number: int, run: Run) -> list[Row]:
    """The rows of a claim by its number; a process that is given this function has imported the ledger."""
    return list(checked(CLAIMS[number], run))
