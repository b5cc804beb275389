"""The ledger: every row holds, a false row fails the command, and a row's verdict is what its numbers say."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toytransformer import __main__ as command
from toytransformer import ledger
from toytransformer.ledger import registry
from toytransformer.ledger.registry import (
    KINDS,
    Claim,
    Run,
    Tolerance,
    algebraic,
    at_least,
    at_most,
    close,
    printed,
    same,
    statistical,
)

COLUMNS = {
    "claim",
    "source",
    "regime",
    "expected",
    "measured",
    "tolerance",
    "tolerance_kind",
    "verdict",
    "note",
    "proof",
    "reason",
    "provenance",
}
numbers = st.floats(-1e6, 1e6)
sizes = st.floats(0, 1e3)


# ---- the whole ledger, once ----


@pytest.fixture(scope="session")
def verified(tmp_path_factory):
    """The command as a user runs it, once for all tests: (completed process, rows it wrote)."""
    file = tmp_path_factory.mktemp("ledger") / "rows.json"
    arguments = [sys.executable, "-m", "toytransformer", "verify", "--json", str(file)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    return done, json.loads(file.read_text()) if file.exists() else []


def test_every_row_holds(verified):
    done, rows = verified
    assert [row for row in rows if row["verdict"] != "holds"] == []
    assert done.returncode == 0, done.stderr
    assert f"{len(rows)} of {len(rows)} checks hold" in done.stdout


def test_every_claim_left_a_row_with_every_column(verified):
    _, rows = verified
    for entry in ledger.CLAIMS:
        assert any(row["claim"].startswith(f"{entry.name}: ") for row in rows), entry.name
    for row in rows:
        assert set(row) == COLUMNS
        assert row["source"] and row["regime"] and row["reason"]
        assert row["tolerance_kind"] in KINDS
        assert (row["tolerance"] == 0) == (row["tolerance_kind"] == "exact")


def test_no_two_rows_make_the_same_claim(verified):
    _, rows = verified
    names = [(row["claim"], row["regime"]) for row in rows]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    "subject",
    ["Prop. 1", "eq. 13-15", "eq. 19", "eq. 21", "eq. 23", "R1", "P3"],
)
def test_every_subject_has_a_row(verified, subject):
    _, rows = verified
    assert any(subject in row["source"] for row in rows)


# ---- the command's status, with few claims in its ledger ----


def verify(monkeypatch, capsys, claims, *arguments) -> tuple[int, str, str]:
    """Run the command in this process on these claims: (exit status, stdout, stderr)."""
    monkeypatch.setattr(registry, "CLAIMS", claims)
    monkeypatch.setattr(sys, "argv", ["toytransformer", "verify", "--jobs", "1", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    output = capsys.readouterr()
    return stop.value.code, output.out, output.err


def test_processes_that_check_leave_the_rows_as_they_are(monkeypatch):
    monkeypatch.setattr(registry, "CLAIMS", registry.CLAIMS[:2])
    alone, beside = (list(ledger.verify(Run(), jobs)) for jobs in (1, 2))
    assert alone == beside and len(alone) >= 2


def killed_claim(run):
    yield from true_claim(run)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_claim_whose_process_is_killed_fails(monkeypatch):
    entry = Claim("sum", "eq. 0", "", killed_claim)
    monkeypatch.setattr(registry, "CLAIMS", [entry])
    monkeypatch.setattr(registry, "rows_of", _killed)
    (row,) = ledger.verify(Run(), jobs=2)
    assert (row.claim, row.measured, row.verdict) == ("sum", "its process was killed", "fails")


def _killed(number, run):
    return list(killed_claim(run))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_command(how):
    line = [sys.executable, "-m", "toytransformer", "verify", "--jobs", "2"]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as command:
        beside = []
        while len(beside) < 2:
            time.sleep(0.05)
            beside = [
                p for p in psutil.Process(command.pid).children() if "spawn_main" in " ".join(p.cmdline())
            ]
        command.send_signal(how)
    _, alive = psutil.wait_procs(beside, timeout=60)
    assert not alive


def true_claim(run):
    yield close("one and one", 2.0, 1.0 + 1.0, algebraic(), regime="exact", note="a remark")


def false_claim(run):
    yield close("one and one", 3.0, 1.0 + 1.0, algebraic(), regime="exact")


def broken_claim(run):
    yield from true_claim(run)
    raise ZeroDivisionError("nothing to divide by")


def empty_claim(run):
    yield from ()


def infinite_claim(run):
    yield close("a bound", 0.0, math.inf, algebraic(), regime="exact")


def test_a_ledger_that_holds_exits_0(monkeypatch, capsys, tmp_path):
    file = tmp_path / "rows.json"
    status, out, _ = verify(monkeypatch, capsys, [Claim("sum", "eq. 0", "", true_claim)], "--json", file)
    assert status == 0
    assert "1 of 1 checks hold" in out and "a remark" in out
    (row,) = json.loads(file.read_text())
    assert (row["claim"], row["source"], row["verdict"]) == ("sum: one and one", "eq. 0", "holds")
    assert {"git", "packages", "seed", "thorough"} <= row["provenance"].keys()
    assert set(row) == COLUMNS


@pytest.mark.parametrize("check", [false_claim, broken_claim, empty_claim, infinite_claim])
def test_a_claim_that_fails_exits_1_and_its_row_is_written(monkeypatch, capsys, tmp_path, check):
    file = tmp_path / "rows.json"
    claims = [Claim("sum", "eq. 0", "", true_claim), Claim("wrong", "eq. 1", "", check)]
    status, out, _ = verify(monkeypatch, capsys, [*claims, claims[0]], "--json", file)
    assert status == 1
    rows = json.loads(file.read_text())
    (failed,) = [row for row in rows if row["verdict"] != "holds"]
    assert failed["claim"].startswith("wrong") and failed["source"] == "eq. 1"
    assert f"{len(rows) - 1} of {len(rows)} checks hold" in out
    assert rows[-1]["claim"] == "sum: one and one", "a failed check must not end the ledger"


def test_a_check_that_raises_keeps_the_rows_before_it(monkeypatch):
    monkeypatch.setattr(registry, "CLAIMS", [Claim("wrong", "eq. 1", "thm", broken_claim)])
    good, bad = registry.verify(Run())
    assert good.verdict == "holds" and bad.verdict == "fails"
    assert "ZeroDivisionError: nothing to divide by" in bad.measured and bad.proof == "thm"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json", "no/such/folder/rows.json"],
        ["--seed", "one"],
        ["--seed", "-1"],
        ["--unknown"],
        ["surplus"],
    ],
)
def test_bad_arguments_are_one_line_and_status_2(monkeypatch, capsys, arguments):
    def never(run):
        raise AssertionError("checked before the arguments were")

    status, out, err = verify(monkeypatch, capsys, [Claim("never", "", "", never)], *arguments)
    assert status == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1


# ---- rows ----


@given(numbers, numbers, sizes)
def test_close_holds_within_its_tolerance_only(expected, measured, size):
    row = close("c", expected, measured, Tolerance(size, "algebraic", "given"), regime="r")
    assert (row.verdict == "holds") == (abs(measured - expected) <= size)


@given(numbers, numbers, sizes)
def test_bounds_hold_on_their_side_only(bound, measured, size):
    tolerance = Tolerance(size, "algebraic", "given")
    assert (at_most("c", bound, measured, tolerance, regime="r").verdict == "holds") == (
        measured <= bound + size
    )
    assert (at_least("c", bound, measured, tolerance, regime="r").verdict == "holds") == (
        measured >= bound - size
    )


@pytest.mark.parametrize("measured", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("check", [close, at_most, at_least])
def test_no_bound_holds_for_a_number_that_is_none(check, measured):
    assert check("c", 0.0, measured, algebraic(), regime="r").verdict == "fails"


def test_same_compares_exactly():
    assert same("c", (1, 2), (1, 2), regime="r").verdict == "holds"
    assert same("c", (1, 2), (1, 2.5), regime="r").verdict == "fails"


@pytest.mark.parametrize("size", [math.nan, math.inf, -1.0])
def test_a_tolerance_is_a_finite_size_of_a_known_kind(size):
    with pytest.raises(ValueError, match="not a tolerance"):
        Tolerance(size, "algebraic", "wrong")
    with pytest.raises(ValueError, match="algebraic, statistical"):
        Tolerance(1.0, "generous", "wrong")
    with pytest.raises(ValueError, match="not a tolerance"):
        statistical(size)


def test_printed_digits_allow_half_a_unit_of_the_last():
    assert close("c", 0.9019, 0.90194, printed(4), regime="r").verdict == "holds"
    assert close("c", 0.9019, 0.90196, printed(4), regime="r").verdict == "fails"


@pytest.mark.slow
def test_what_is_printed_is_the_same_with_one_thread_and_with_two():
    """Rounding differs; no number, verdict or note that is shown does."""
    command = [sys.executable, "-m", "toytransformer", "verify"]
    one, two = (
        subprocess.run(
            command,
            env=os.environ | {"OPENBLAS_NUM_THREADS": count, "OMP_NUM_THREADS": count},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for count in ("1", "2")
    )
    assert len(one) > 400 and [pair for pair in zip(one, two, strict=True) if len(set(pair)) > 1] == []
