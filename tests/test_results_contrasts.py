"""Differences between cells: the arithmetic of shares, an independent permutation test, what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured_cells import cells, measured
from scipy import stats

from results.contrasts import contrast
from results.statistics import StatisticsError


def pair(first: str, second: str):
    """Two cells that differ in their rule; one letter an answer, one chain each."""
    one, two = cells(measured(first, rule="mean"), measured(second, rule="sum"))
    return one, two


@given(st.integers(2, 9).flatmap(lambda n: st.tuples(*[st.text("1boe", min_size=n, max_size=n)] * 2)))
def test_a_contrast_is_the_difference_of_shares_and_turns_with_its_sides(answers):
    one, two = pair(*answers)
    there, back = contrast(one, two), contrast(two, one)
    assert there.difference == pytest.approx(one.share - two.share)
    assert (back.difference, back.p) == pytest.approx((-there.difference, there.p))
    assert there.low <= there.difference <= there.high and there.clusters == len(answers[0])


@given(st.integers(2, 8).flatmap(lambda n: st.tuples(*[st.text("1b", min_size=n, max_size=n)] * 2)))
def test_its_p_is_that_of_a_permutation_test_of_paired_samples(answers):
    one, two = pair(*answers)
    right = [np.array([letter == "1" for letter in text], float) for text in answers]
    other = stats.permutation_test(
        right, lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert contrast(one, two).p == pytest.approx(other.pvalue)


def test_an_effect_is_taken_over_several_cells():
    four = cells(*(measured(text, rule=rule) for text, rule in zip(TWO_BY_TWO, FOUR_RULES, strict=True)))
    neither, own, partner, both = four
    effect = contrast((own, both), (neither, partner))
    shares = [cell.share for cell in four]
    assert effect.difference == pytest.approx((shares[1] + shares[3] - shares[0] - shares[2]) / 2)
    assert effect.points.startswith("−62.5 [−87.5, ") and effect.high < 0


FOUR_RULES = ("mean", "sum", "ties", "linear")
TWO_BY_TWO = ("1111", "1bb1", "1111", "b1bb")


def test_cells_about_other_chains_are_refused():
    one, two = pair("11", "111")
    with pytest.raises(StatisticsError, match="compare cells that ask about the same ones"):
        contrast(one, two)


def test_only_shared_training_seeds_are_kept():
    one, two = cells(
        measured("11", rule="mean"), measured("bb", rule="mean", seed=1), measured("11", rule="sum")
    )
    assert one.share == 0.5 and one.of_seeds(two).share == 1.0
    (three,) = cells(measured("11", rule="sum", seed=7))
    with pytest.raises(StatisticsError, match="share no training seed"):
        one.of_seeds(three)


def test_collapse_onto_one_answer_shows():
    (cell,) = cells(measured("bbb1"))
    assert cell.most_frequent == "bridge"
    assert sum(cell.commonest) == pytest.approx(1)
