"""Plain NumPy gives the numbers of the package, and the benchmark's command runs. Times are not tested."""

import json
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import measure, plain, theory
from benchmarks.__main__ import joined
from benchmarks.case import NOTHING
from benchmarks.cases import cases
from toytransformer import sampling
from toytransformer.compositions import Prompt
from toytransformer.regimes import Finite, FullLimit

ROOT = Path(__file__).parents[1]
SMALL = list(cases(small=True))


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.name}-{case.ours.arguments}")
def test_both_sides_of_a_case_agree(case):
    sides = (case.ours, case.plain)
    ours, other = (side.prepare(*side.arguments)() if side.prepare else NOTHING for side in sides)
    apart, allowed = case.difference(ours, other)
    assert np.isnan(allowed) or apart <= allowed


@settings(max_examples=10)
@given(st.integers(1, 12))
def test_dense_and_symmetric_predictions_are_the_plain_solve(facts):
    dense, solved = theory.dense_prediction(facts)(), theory.plain_prediction(facts)()
    assert dense.shape[0] == 3
    for difference, ours in (
        (theory.same_numbers, dense),
        (theory.same_chains(facts), theory.symmetric_prediction(facts)()),
    ):
        apart, allowed = difference(ours, solved)
        assert apart <= allowed


def test_places_and_spreads_are_those_of_the_explicit_network():
    dimension, width, draws, repeats = 24, 50, 4000, 1000
    keys, query = [Prompt("x1", ("R1",)), Prompt("y1", ("R2",))], Prompt("x1", ("R1", "R2"))
    ours = sampling.overlap_draws(Finite(dimension=dimension, width=width), keys, query, draws)
    other = plain.coefficient_draws(theory.KEYS, theory.QUERY, dimension, width, repeats)
    # Mann-Whitney: of two samples of one law, one is above the other half of the time; its standard error
    error = np.sqrt((1 / draws + 1 / repeats) / 12)
    middle = np.median(ours, axis=0)
    for mine, theirs in ((ours, other), (np.abs(ours - middle), np.abs(other - middle))):
        above = np.array([(a[:, None] > b).mean() for a, b in zip(mine.T, theirs.T, strict=True)])
        assert np.all(np.abs(above - 0.5) <= 5 * error)


def test_the_hidden_states_of_orthonormal_tokens_are_those_of_the_full_limit():
    prompts = [*theory.KEYS, theory.QUERY, ("x1", "R2", "R1", "R1")]
    count = len(plain.tokens(prompts))
    embeddings = np.eye(count, 2 * count)
    values = np.roll(np.eye(2 * count), count, axis=0)
    states = plain.hidden_states(prompts, embeddings, values)
    expected = FullLimit().hidden_gram([Prompt(entity, tuple(relations)) for entity, *relations in prompts])
    assert np.allclose(states @ states.T, expected, rtol=0, atol=10 * np.finfo(float).eps)


def test_a_difference_between_the_sides_is_seen():
    draws = next(case for case in SMALL if case.name == "draws")
    ours = np.asarray(draws.ours.prepare(*draws.ours.arguments)())
    apart, allowed = draws.difference(ours, ours[:10] + 1)
    assert apart > allowed
    symmetric = next(case for case in SMALL if case.name == "symmetry")
    one = np.asarray(symmetric.ours.prepare(*symmetric.ours.arguments)())
    dense = np.asarray(symmetric.plain.prepare(*symmetric.plain.arguments)())
    apart, allowed = symmetric.difference(one + 1e-6, dense)
    assert apart > allowed


def test_a_measurement_is_made_in_a_process_of_its_own():
    done = measure.measure(holds_a_block, 2**26, repeats=2)
    assert done.value.tolist() == [2**26, 3]
    assert len(done.seconds) == len(done.processor) == 2
    # what both processes import cancels: a block is left, give or take what the loader does
    assert done.peak - measure.measure(holds_a_block, 1, repeats=0).peak > 2**25


def holds_a_block(size):
    calls = []

    def work():
        calls.append(np.ones(size, np.uint8))
        block = calls[-1]
        calls[-1] = None
        return np.array([block.sum(dtype=np.int64), len(calls)])

    return work


def test_the_command_prints_and_writes_its_rows(tmp_path):
    done = run("--small", "draws", "--json", tmp_path / "rows.json")
    assert done.returncode == 0, done.stderr
    assert "draws" in done.stdout and "agree" in done.stdout
    report = json.loads((tmp_path / "rows.json").read_text())
    assert {"provenance", "processors", "threads", "small", "rows"} == set(report)
    assert [row["case"] for row in report["rows"]] == ["draws", "draws"]
    assert all(row["agrees"] for row in report["rows"])
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_rows_of_some_cases_join_those_of_a_file():
    def report(commit, *cases, small=False):
        rows = [{"case": case, "of": commit} for case in cases]
        return {"provenance": {"git": commit}, "small": small, "rows": rows}

    kept, new = report("a", "memory", "arrow", "arrow"), report("b", "draws", "arrow")
    found = joined(kept, new)
    assert [(row["case"], row["of"]) for row in found["rows"]] == [
        ("memory", "a"),
        ("draws", "b"),
        ("arrow", "b"),
    ]
    assert found["provenance"] == {"git": "a"}
    assert [row.get("provenance") for row in found["rows"]] == [None, {"git": "b"}, {"git": "b"}]
    with pytest.raises(click.UsageError, match="another size"):
        joined(kept, report("b", "arrow", small=True))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("nonsense",), "nonsense"),
        (("--small", "dense", "--json", "no/such/folder/rows.json"), "not a folder"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_the_committed_results_are_of_a_full_run():
    report = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    assert not report["small"]
    expected = [(case.name, case.about) for case in cases()]
    assert [(row["case"], row["about"]) for row in report["rows"]] == expected
    assert all(row["agrees"] is not False for row in report["rows"])


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
