"""The command line: what it prints and writes, and that every bad argument is one clear line and status 2."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from toytransformer import __main__ as command
from toytransformer.compositions import Merge, catalogue, read_jsonl
from toytransformer.merging import RULES
from toytransformer.prediction import predict
from toytransformer.regimes import Finite, FullLimit, WidthLimit

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (status, stdout, stderr)."""

    monkeypatch.setenv("COLUMNS", "300")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["toytransformer", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def refused(result, *words):
    status, out, err = result
    assert status == 2, result
    assert out == "" and err.count("\n") == 1 and err.startswith("error: "), result
    assert "Traceback" not in err
    for word in words:
        assert word in err, (word, err)


# ---- what it does ----


def test_list_names_everything(run):
    status, out, err = run("list")
    assert status == 0 and err == ""
    for name in (*catalogue.names(), *RULES):
        assert f" {name} " in out


@pytest.mark.parametrize(
    "command_line", [["--help"], ["predict", "--help"], ["verify", "-h"], ["list", "-h"]]
)
def test_help(run, command_line):
    status, out, err = run(*command_line)
    assert status == 0 and "Usage:" in out and err == ""


def test_predict_goes_beyond_the_papers_model(run, tmp_path):
    file = tmp_path / "records.jsonl"
    beyond = ["--base", "trained", "--typed", 0.5, "--relation-length", 2, "--degree", "one-hop"]
    status, out, _ = run("predict", "two-hop", "--facts", 5, *beyond, "--bystanders", 4, "--json", file)
    assert status == 0 and "correct 20.0%  bridge 0.0%  old 0.0%  edited 80.0%" in out
    assert "model: trained base, typed answers, t = 0.5, relations 2 times as long as entities, 4 by" in out
    assert "5 known (degree one-hop) facts" in out
    record = read_jsonl(file)[0]
    assert {"base": "trained", "typed": 0.5, "relation_length": 2.0}.items() <= record.regime.items()
    assert {"degree": "one-hop", "bystanders": 4}.items() <= record.setting.items()
    # at their defaults they leave no trace
    status, out, _ = run("predict", "two-hop", "--typed", 0, "--relation-length", 1, "--json", file)
    plain = read_jsonl(file)[0]
    assert "model:" not in out and plain.regime == FullLimit().describe()
    assert plain.spec_hash == catalogue.build("two-hop").spec_hash


def test_predict_knows_two_million_facts_of_it(run):
    _, out, _ = run("predict", "two-hop", "--facts", 2 * 10**6, "--base", "trained", "--typed", 0.3,
                    "--own-second", "--bystanders", 7)  # fmt: skip
    assert "x1_own" in out and "old 100.0%" in out and "the base knows x R2 of its own" in out


REGIMES = [
    ([], FullLimit()),
    (["--mask", "causal"], FullLimit(mask="causal")),
    (["--regime", "width", "-d", 32], WidthLimit(dimension=32)),
    (["--regime", "finite", "-d", 32, "-m", 128, "--seed", 4], Finite(dimension=32, width=128, seed=4)),
    (
        ["--regime", "finite", "-d", 32, "-m", 128, "--attention", "softmax"],
        Finite(dimension=32, width=128, attention="softmax"),
    ),
]


@pytest.mark.parametrize(
    "arguments, regime", REGIMES, ids=[" ".join(map(str, a)) or "limit" for a, _ in REGIMES]
)
def test_predict_is_the_librarys_prediction(run, tmp_path, arguments, regime):
    file = tmp_path / "records.jsonl"
    status, out, err = run("predict", "two-hop", "--facts", 2, *arguments, "--json", file)
    assert status == 0 and err == ""
    expected = predict(catalogue.build("two-hop", facts=2, seed=regime.seed), regime)
    assert read_jsonl(file) == list(expected.records())
    for outcome, share in expected.shares.items():
        assert f"{outcome} {share:.1%}" in out
    assert "x1 R1 R2" in out


@pytest.mark.parametrize(
    "arguments, how",
    [
        (["--fresh"], {"known": False}),
        (["--library", "hop1,hop2,oracle"], {"library": ("hop1", "hop2", "oracle")}),
        (["--merge", "sum", "--weights", "0.5,2"], {"merge": Merge("sum", (0.5, 2.0))}),
        (["--merge", "linear", "--gauge", "facts"], {"merge": Merge("linear"), "gauge": "facts"}),
        (
            ["--merge", "ties", "--option", "density=0.5", "--option", "sign=frequency"],
            {"merge": Merge("ties", options={"density": 0.5, "sign": "frequency"})},
        ),
        (["--merge", "cat-fitted", "--examples", 2], {"merge": Merge("cat-fitted"), "examples": 2}),
        (["--merge", "arrow-products"], {"merge": Merge("arrow-products")}),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_arguments_reach_the_composition(run, tmp_path, arguments, how):
    file = tmp_path / "records.jsonl"
    status, out, _ = run("predict", "two-hop", "--facts", 2, *arguments, "--json", file)
    assert status == 0
    composition = catalogue.build("two-hop", facts=2, **how)
    assert {record.spec_hash for record in read_jsonl(file)} == {composition.spec_hash}
    if how.get("merge") == Merge("arrow-products"):
        assert "spectral gap" in out


def test_many_facts_take_the_symmetric_route(run, tmp_path):
    file = tmp_path / "records.jsonl"
    start = time.perf_counter()
    status, out, _ = run("predict", "two-hop", "--fresh", "--facts", 10**6, "--json", file)
    assert status == 0 and "bridge 100.0%" in out
    assert time.perf_counter() - start < 10
    (record,) = read_jsonl(file)
    assert record.answer == "y1" and record.setting["facts"] == 10**6


def test_as_a_module_in_a_process_of_its_own(tmp_path):
    def process(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "toytransformer", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        )

    file = tmp_path / "records.jsonl"
    done = process("predict", "two-hop", "--regime", "width", "-d", "8", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert json.loads(file.read_text())["regime"]["dimension"] == 8
    # x64 as here: the same numbers to the last digits that a compiler may turn
    (expected,) = predict(catalogue.build("two-hop"), WidthLimit(dimension=8)).records()
    (record,) = read_jsonl(file)
    assert record.mixture == pytest.approx(expected.mixture, rel=1e-12)
    bad = process("predict", "nothing")
    assert (bad.returncode, bad.stdout) == (2, "") and bad.stderr.count("\n") == 1


# ---- what it refuses ----

BAD = {
    "unknown name": (["nothing"], ["'nothing'", "two-hop"]),
    "empty name": ([""], ["two-hop"]),
    "no name": ([], ["NAME"]),
    "unknown rule": (["two-hop", "--merge", "average"], ["'average'", "linear"]),
    "unknown option": (["two-hop", "--option", "rank=2"], ["'sum'", "'rank'"]),
    "option without value": (["two-hop", "--option", "density"], ["'density'", "KEY=VALUE"]),
    "option twice": (
        ["two-hop", "--merge", "ties", "--option", "density=0.1", "--option", "density=0.2"],
        ["'density'", "twice"],
    ),
    "option of wrong kind": (
        ["two-hop", "--merge", "ties", "--option", "density=much"],
        ["density", "share"],
    ),
    "option out of range": (["two-hop", "--merge", "ties", "--option", "density=1.5"], ["1.5", "at most 1"]),
    "nan option": (["two-hop", "--merge", "ties", "--option", "density=NaN"], ["nan"]),
    "list option": (["two-hop", "--merge", "ties", "--option", "density=[1]"], ["[1]"]),
    "unknown flag": (["two-hop", "--fact", "2"], ["--fact"]),
    "unknown gauge": (["two-hop", "--gauge", "qr"], ["'qr'", "svd"]),
    "unknown library": (["two-hop", "--library", "hop1,hop9"], ["'hop9'", "hop2"]),
    "empty library": (["two-hop", "--library", ""], ["hop1"]),
    "repeated library": (["two-hop", "--library", "hop1,hop1"], ["'hop1'"]),
    "facts 0": (["two-hop", "--facts", "0"], ["--facts", "0"]),
    "facts -3": (["two-hop", "--facts", "-3"], ["--facts", "-3"]),
    "facts 1.5": (["two-hop", "--facts", "1.5"], ["--facts", "'1.5'"]),
    "examples -1": (["two-hop", "--examples", "-1"], ["--examples", "-1"]),
    "too few weights": (["two-hop", "--weights", "1"], ["1 weights", "2 adapters"]),
    "too many weights": (["two-hop", "--weights", "1,2,3"], ["3 weights", "2 adapters"]),
    "weights no numbers": (["two-hop", "--weights", "one,two"], ["'one,two'", "0.5,0.5"]),
    "weights empty": (["two-hop", "--weights", ""], ["--weights", "0.5,0.5"]),
    "nan weights": (["two-hop", "--weights", "nan,1"], ["nan", "finite"]),
    "infinite weights": (["two-hop", "--weights", "1,inf"], ["inf", "finite"]),
    "weights the rule sets": (
        ["two-hop", "--merge", "mean", "--weights", "1,1"],
        ["'mean'", "leave them out"],
    ),
    "unknown regime": (["two-hop", "--regime", "small"], ["'small'", "limit"]),
    "-d in the limit": (["two-hop", "-d", "8"], ["-d", "--regime width"]),
    "-m in the limit": (["two-hop", "-m", "8"], ["-m", "--regime finite"]),
    "-m in the width limit": (["two-hop", "--regime", "width", "-m", "8"], ["-m", "--regime finite"]),
    "d 0": (["two-hop", "--regime", "width", "-d", "0"], ["-d", "is 0", ">= 1"]),
    "d 2.5": (["two-hop", "--regime", "width", "-d", "2.5"], ["'2.5'"]),
    "m -1": (["two-hop", "--regime", "finite", "-m", "-1"], ["-m", "is -1"]),
    "m of a trillion": (["two-hop", "--regime", "finite", "-m", 10**12], ["-m", "width limit"]),
    "m below the facts": (
        ["two-hop", "--regime", "finite", "--facts", "9", "-m", "8"],
        ["linearly dependent", "widen"],
    ),
    "m of one": (["two-hop", "--regime", "finite", "--facts", "9", "-m", "1"], ["is zero", "larger width"]),
    "d beyond memory": (["two-hop", "--regime", "width", "-d", 10**14], ["GiB", "smaller"]),
    "unknown mask": (["two-hop", "--mask", "none"], ["'none'", "causal-printed"]),
    "unknown attention": (["two-hop", "--attention", "hard"], ["'hard'", "softmax"]),
    "seed -1": (["two-hop", "--seed", "-1"], ["seed", "-1"]),
    "seed too large": (["two-hop", "--seed", 2**70], ["seed", "2147483647"]),
    "rule without data": (["two-hop", "--merge", "lorahub"], ["examples"]),
    "facts beyond memory": (["two-hop", "--merge", "ties", "--facts", 10**7], ["GiB", "fewer facts"]),
    "facts beyond memory, asymmetric": (["chain-of-thought", "--facts", 10**9], ["GiB"]),
    "facts beyond memory, width": (["two-hop", "--regime", "width", "--facts", 10**8], ["GiB"]),
    "facts beyond counting": (["two-hop", "--facts", 10**400], ["--facts"]),
    "examples beyond memory": (["two-hop", "--merge", "lorahub", "--examples", 10**9], ["GiB"]),
    "json without a folder": (["two-hop", "--json", "/nowhere/at/all.jsonl"], ["'/nowhere/at/all.jsonl'"]),
    "json in a file": (["two-hop", "--json", f"{__file__}/rows.jsonl"], ["missing or not writable"]),
    "json is a folder": (["two-hop", "--json", os.path.dirname(__file__)], ["--json", "director"]),
    "json in a folder that takes no files": (["two-hop", "--json", "/proc/rows.jsonl"], ["/proc"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_one_clear_line(run, case):
    arguments, words = BAD[case]
    start = time.process_time()  # others may be at work on the machine
    refused(run("predict", *arguments), *words)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["prdict", "two-hop"], "prdict"),
        (["verify", "--json", "/nowhere/at/all.json"], "/nowhere"),
        (["verify", "--seed", "x"], "'x'"),
        (["verify", "extra"], "extra"),
        (["list", "--all"], "--all"),
    ],
)
def test_bad_commands_too(run, arguments, word):
    refused(run(*arguments), word)


def test_no_arguments_show_the_help(run):
    status, out, err = run()
    assert status == 2 and out == "" and "error" not in err
    for line in ("Usage: python -m toytransformer", "  predict  ", "  verify   "):
        assert f"\n{line}" in f"\n{err}"


@pytest.mark.parametrize("arguments", [["list"], ["predict", "two-hop"], ["predict", "library-shared"]])
def test_what_is_printed_fits_80_columns(run, monkeypatch, arguments):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = run(*arguments)
    assert status == 0 and max(map(len, out.splitlines())) <= 80
    assert "…" not in out and "{" not in out and "Merge(" not in out  # whole texts, and no Python


def test_predict_says_what_it_predicts(run):
    arguments = ["--facts", "2", "--fresh", "--merge", "linear", "--weights", "1.2,1.5", "--seed", "3"]
    _, out, _ = run("predict", "two-hop", *arguments, "--regime", "finite", "-d", "32", "-m", "128")
    assert "two-hop: 2 fresh facts in each adapter\n" in out
    assert "merged: hop1, hop2 by linear (weights 1.2, 1.5)\n" in out
    assert "regime: finite, d = 32, m = 128, strict mask, uniform attention, seed 3\n" in out


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["figures", "report"], "--ledger"),
        (["figures", "report", "--ledger", "README.md"], "verify --json FILE"),
        (["figures", "theory", "--rows", "/nowhere/rows.json"], "/nowhere/rows.json"),
        (["figures", "theory", "--out", "/proc/figures"], "/proc/figures"),
        (["figures", "theory", "--format", "gif"], "'gif'"),
        (["benchmarks", "all"], "'all'"),
        (["benchmarks", "--json", "/nowhere/rows.json"], "/nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_other_commands_refuse_in_one_line_too(arguments, word):
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and word in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_failed_write_leaves_the_old_file(run, tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text("kept\n")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    refused(run("predict", "two-hop", "--json", file), "No space left")
    assert file.read_text() == "kept\n" and os.listdir(tmp_path) == ["rows.jsonl"]


# ---------------------------------------------------------------- long work, arbitrary numbers, odd files


def test_what_is_arbitrary_is_not_printed_as_a_number(run, tmp_path):
    """The largest singular values of a hundred interchangeable facts tie: any prototype is as good."""
    arguments = ["--library", "hop1,hop2,oracle", "--facts", 100, "--merge", "arrow-products"]
    status, out, _ = run("predict", "two-hop", *arguments, "--json", tmp_path / "rows")
    assert status == 0 and "undetermined: the two largest singular values of an adapter are equal" in out
    assert "%" not in out and "spectral gap 0\n" in out and ":+" not in out
    assert all(
        "Arrow prototype is arbitrary" in record.undetermined for record in read_jsonl(tmp_path / "rows")
    )
    status, out, _ = run(
        "predict", "two-hop", "--facts", 2, "--merge", "arrow-products", "--json", tmp_path / "rows"
    )
    assert status == 0 and "old 100.0%" in out and "undetermined" not in (tmp_path / "rows").read_text()


def test_a_device_a_pipe_and_a_link_are_written_to(run, tmp_path):
    assert run("predict", "two-hop", "--json", "/dev/null")[0] == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
    link.symlink_to(target)
    assert run("predict", "two-hop", "--json", link)[0] == 0
    assert link.is_symlink() and len(read_jsonl(target)) == 1
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: target.write_text(pipe.read_text()), daemon=True)
    reader.start()
    assert run("predict", "two-hop", "--facts", 2, "--json", pipe)[0] == 0
    reader.join(30)
    assert pipe.is_fifo() and len(read_jsonl(target)) == 2
    link.unlink()
    link.symlink_to(link)
    refused(run("predict", "two-hop", "--json", link), "link")
    refused(run("predict", "two-hop", "--json", tmp_path / "missing" / "rows"), "missing or not writable")


def test_ctrl_c_ends_a_long_prediction_whose_time_was_said(tmp_path):
    arguments = ["predict", "two-hop", "--regime", "finite", "-m", str(2**31 - 1)]
    command = [sys.executable, "-m", "toytransformer", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.stderr.readline()  # before the work
        assert said.startswith("two-hop, 1 fact in each adapter: ") and "Ctrl-C" in said
        time.sleep(1)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and out == "" and err.strip() == ""
    assert time.monotonic() - begin < 10  # a second, on a machine that does nothing else


def test_ctrl_c_ends_work_that_lets_no_other_python_run():
    """SciPy's LAPACK holds the interpreter's lock, here for half a minute and more."""
    work = "linalg.svdvals(numpy.random.default_rng(0).standard_normal((2500, 2500)))"
    code = "import numpy; from scipy import linalg; from toytransformer import interrupts\n"
    code += "from toytransformer.working import working\ninterrupts.end_at_once()\n"
    code += f"working(lambda: {work}, 'title', 60, 'a minute')"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "title: a minute; Ctrl-C ends it\n"
        time.sleep(1.5)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == -signal.SIGINT and time.monotonic() - begin < 5


def test_the_rank_counts_in_the_memory_that_is_needed(run):
    refused(run("predict", "two-hop", "--rank", 2**40), "rank 1099511627776 needs", "GiB")


# ---- stacks of layers ----


def test_layers_compose_in_their_order_only(run):
    ask = ("predict", "two-hop", "--facts", 3, "--fresh", "--weights", "1,3", "--layers")
    for layers, more, right in (("1,2", (), "100.0%"), ("2,1", (), "33.3%"), ("1,2", ("--untied",), "33.3%")):
        status, out, _ = run(*ask, layers, *more)
        assert status == 0 and f"correct {right}" in out and "2 layers, labels" in out
    status, out, _ = run(*ask, "1+2,2", "--depth", 3, "--base", "trained")
    assert (
        status == 0 and "3 layers, labels tied, hop1 in 1, 2; hop2 in 2, a trained base in all layers" in out
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--layers", "1"), ("one for each: hop1, hop2",)),
        (("--layers", "one,two"), ("whole numbers",)),
        (("--layers", "1,9"), ("from 1 to 8",)),
        (("--layers", "1,0"), ("from 1 to 1",)),
        (("--layers", "1,2", "--depth", "1"), ("from 1 to 1",)),
        (("--layers", "1,2", "--typed", "0.5"), ("--typed",)),
        (("--layers", "1,2", "--merge", "new-adapter"), ("new-adapter",)),
        (("--untied",), ("--layers",)),
        (("--depth", "2"), ("--layers",)),
        (("--layers", "1,2", "--facts", "8000"), ("needs about", "fewer facts")),
    ],
)
def test_layers_that_mean_nothing_are_refused(run, arguments, words):
    refused(run("predict", "two-hop", *arguments), *words)
