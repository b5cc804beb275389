"""Verdicts on the paper's claims: by rules that can go either way, from rows of its own tables."""

from types import SimpleNamespace

import pytest

from llm_experiments.domains.task import DOMAINS
from llm_experiments.pages import theorems
from results import claims, paper
from results.claims import DOES_NOT, NOT_MEASURED, NOT_TESTABLE, REPRODUCES, UNDECIDED


def cell(low, high, clusters=None):
    by = {f"x{n}": [value] for n, value in enumerate(clusters or ())}
    return SimpleNamespace(interval=lambda of: (low, high), by_cluster=lambda of: by)


def numbers(first=(), second=(), bound=None):
    return claims.Numbers(first, second, bound)


@pytest.mark.parametrize(
    ("low", "high", "below", "overlaps"),
    [
        (0.0, 0.09, REPRODUCES, REPRODUCES),
        (0.05, 0.15, UNDECIDED, REPRODUCES),
        (0.2, 0.3, DOES_NOT, DOES_NOT),
        (0.0, 0.01, REPRODUCES, DOES_NOT),
    ],
)
def test_a_share_is_judged_by_its_interval(low, high, below, overlaps):
    printed = numbers((2.0, 8.0), bound=10)
    assert claims.RULE["below"]([cell(low, high)], printed)[0] == below
    assert claims.RULE["overlaps"]([cell(low, high)], printed)[0] == overlaps


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([1, 1, 1, 1, 0], [0, 0, 0, 0, 0], REPRODUCES),
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], DOES_NOT),  # the paper's least difference is 30 points
        ([1, 0, 1, 0, 1], [0, 1, 0, 1, 0], UNDECIDED),
        ([1], [0], UNDECIDED),
    ],
)
def test_a_difference_is_judged_by_its_interval(first, second, verdict):
    sides = [cell(0, 1, first), cell(0, 1, second)]
    assert claims.RULE["higher"](sides, numbers((40.0, 90.0), (10.0, 5.0)))[0] == verdict


def test_where_the_papers_models_disagree_only_the_other_sign_refutes():
    level = [cell(0, 1, [1, 0, 1, 0]), cell(0, 1, [1, 0, 1, 0])]
    printed = numbers((40.0, 5.0), (10.0, 9.0))
    assert claims.RULE["higher"](level, printed)[0] == UNDECIDED
    lower = [cell(0, 1, [0, 0, 0, 0]), cell(0, 1, [1, 1, 1, 1])]
    assert claims.RULE["higher"](lower, printed)[0] == DOES_NOT


def test_every_claim_is_about_one_row_and_without_rows_is_not_measured():
    found = claims.judged({}, DOMAINS)
    assert {finding.verdict for claim in found for finding in claim.findings} == {NOT_MEASURED}
    elsewhere = claims.judged({}, ["two-hop"])
    assert {NOT_MEASURED, NOT_TESTABLE} == {f.verdict for claim in elsewhere for f in claim.findings}
    assert all(claim.printed for claim in found)
    assert claims.counted(found, "none")[NOT_MEASURED] == len(found)
    told = {entry["table"] for entry in claims.claims()["claim"] if "table" in entry}
    assert told | {"table1"} == set(paper.tables())  # Table 1 is the Arrow rows of Table 10


def test_theorems_are_as_the_table_of_proofs_has_them():
    assert all(theorem["holds"] and theorem["fails"] for theorem in theorems())
