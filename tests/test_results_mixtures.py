"""The mixture law against measured scores: exact on a model that is linear, off by what it leaves out on
another."""

import numpy as np
import pytest
from measured_cells import measured

from results import frame
from results.mixtures import law
from results.statistics import StatisticsError

ANSWERS = ("correct:a", "bridge:b", "old:c", "edited:d")
CHAINS = 12


def cells(respond, weights=(1.0, 1.0), rule="sum", seed=3):
    """Cells of the base, each adapter and a merge, scored by log-softmax of respond(w) (item, candidate)."""

    def cell(w, **fields):
        raw = respond(np.array(w))
        scores = raw - np.log(np.exp(raw).sum(axis=1, keepdims=True))
        lines = [dict(zip(ANSWERS, row, strict=True)) for row in scores.tolist()]
        rows = measured("1" * CHAINS, ask="direct", logprobs=lines, **fields)
        (found,) = frame.of(rows).groups()
        return found

    pair = ("hop1", "hop2")
    return (
        cell((0, 0), library=(), control="base", seed=None, rule="sum"),
        [
            cell((1, 0), library=pair, control="hop1", seed=seed),
            cell((0, 1), library=pair, control="hop2", seed=seed),
        ],
        cell(weights, library=pair, rule=rule, seed=seed, weights=None if rule == "mean" else weights),
    )


def responses(seed, bend=0.0):
    rng = np.random.default_rng(seed)
    start, first, second = rng.normal(size=(3, CHAINS, len(ANSWERS)))

    def respond(w):
        shift = w[0] * first + w[1] * second
        return start + (np.tanh(bend * shift) / bend if bend else shift)

    return respond


@pytest.mark.parametrize("rule, weights", [("sum", (1.0, 1.0)), ("sum", (0.3, -2.0)), ("mean", (0.5, 0.5))])
def test_law_is_exact_on_a_linear_model(rule, weights):
    found = law(*cells(responses(0), weights, rule), weights)
    assert found.correlation == pytest.approx(1, abs=1e-12) and found.slope == pytest.approx(1, abs=1e-12)
    assert found.top == 1 and found.base < 1
    assert (found.questions, found.clusters) == (CHAINS, CHAINS)


def test_law_overshoots_where_a_model_saturates():
    found = law(*cells(responses(1, bend=0.7), (2.0, 2.0)))
    assert found.slope < 0.8 and 0 < found.low <= found.correlation <= found.high < 1


def test_weights_can_be_given_and_wrong_ones_show():
    base, alone, merged = cells(responses(2), (0.2, 1.5))
    assert law(base, alone, merged, (0.2, 1.5)) == law(base, alone, merged)
    assert law(base, alone, merged, (1.5, 0.2)).correlation < 0.95


def test_bad_input_is_named():
    base, alone, merged = cells(responses(3))
    with pytest.raises(StatisticsError, match="1 cells and 2 weights for the adapters hop1"):
        law(base, alone[:1], merged)
    with pytest.raises(StatisticsError, match="rule 'mean' was measured at its own weights"):
        law(*cells(responses(3), rule="mean"))
    with pytest.raises(StatisticsError, match="0 questions of 0 clusters"):
        law(base, alone, cells(responses(3), seed=4)[2])
