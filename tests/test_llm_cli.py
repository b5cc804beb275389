"""The command line of the measurements: what it runs, prints and refuses, on toy steps and a toy model."""

import csv
import io
import json
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from measured_cells import measured as measurements
from toy_steps import plan

from llm_experiments import __main__ as command
from llm_experiments.adapters import peft_files
from llm_experiments.commands import options
from llm_experiments.domains.task import TaskError
from llm_experiments.engine.addresses import Ref
from llm_experiments.engine.steps import Step
from llm_experiments.engine.store import Store
from llm_experiments.experiments import registry, sizes
from llm_experiments.experiments.registry import Experiment
from llm_experiments.experiments.study import Base
from llm_experiments.models import sources
from llm_experiments.models.sources import ModelError
from toytransformer.adapters import LoRA

COMMANDS = (
    "list",
    "run",
    "status",
    "table",
    "keep",
    "results",
    "migrate",
    "rescore",
    "pretrain",
    "export",
    "merge",
    "check",
    "diagnose",
    "pool",
)


@dataclass(frozen=True)
class Measure(Step):
    """Rows as a measurement writes them; fails without the model if it needs one."""

    kind = "measure"

    right: str
    rule: str
    seed: int
    items: Ref
    needs_model: bool = field(default=False, compare=False)

    @property
    def label(self) -> str:
        return f"{self.rule}, seed {self.seed}"

    def compute(self, context, folder):
        if self.needs_model:
            assert context.model
        told = measurements(self.right, rule=self.rule, seed=self.seed, spec_hash=None)
        for file in ("cells", "rows"):
            (folder / f"{file}.jsonl").write_text("".join(told.lines(file)))


def measure(study, right, rule, seed, **options):
    """The step, whose items are entered into the study's plan."""
    ((ref, items),) = measurements(right, rule=rule, seed=seed).items.items()
    assert study.plan.add_input(item.to_dict() for item in items) == ref
    return Measure(right, rule, seed, Ref(ref), **options)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, on two toy experiments: (status, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)

    def load():
        raise ModelError("no such model here: give another")

    def measured(study):
        for seed in study.seeds:
            yield measure(study, "11b.", "mean", seed)
            yield measure(study, "1111", "arrow-products", seed)

    def toys(study):
        study.plan.include(plan(2))
        return ()

    def needing(study):
        yield measure(study, "1", "mean", 0)
        yield measure(study, "b", "ties", 0, needs_model=True)

    def absent(study):
        raise TaskError("data are not here: name a copy")

    toys = {
        "absent": Experiment("absent", absent, "on data that are not here", "nowhere"),
        "toys": Experiment("toys", toys, "steps without rows of answers", "nowhere"),
        "measured": Experiment("measured", measured, "two rules", "Table 1"),
        "needing": Experiment("needing", needing, "one step that needs a model", "nowhere"),
    }
    monkeypatch.setattr(registry, "EXPERIMENTS", toys)
    base = Base("toy/model", "0123456789abcdef")
    monkeypatch.setattr(options, "chosen", lambda *model, **named: options.Chosen(base, load))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["llm_experiments", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def refused(result, *words):
    status, out, err = result
    assert status == 2, result
    assert out == "" and err.count("\n") == 1 and err.startswith("error: "), result
    for word in words:
        assert word in err, (word, err)


# ---- list, help ----


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help(run, name):
    status, out, err = run(*[name] * bool(name), "--help")
    assert status == 0 and err == "" and "Usage" in out
    if not name:
        assert all(f"  {each} " in out for each in COMMANDS)


def test_list_names_experiments_profiles_and_models(run):
    status, out, err = run("list", "--count", "--seeds", "0,1")
    assert status == 0 and err == ""
    for name in ("toys", "measured", *sizes.PROFILES, "embedded", "Qwen/Qwen2.5-7B-Instruct"):
        assert f" {name} " in out
    listed = (line.split() for line in out.splitlines())
    counts = {words[0]: words[-1] for words in listed if words and words[0] in registry.EXPERIMENTS}
    assert "\nabsent: data are not here: name a copy\n" in out
    assert counts == {"absent": "?", "toys": "4", "measured": "4", "needing": "2"}


def test_nothing_heavy_is_imported_for_what_needs_no_model():
    code = (
        "import sys; from llm_experiments import __main__; from llm_experiments.engine import local, store"
        "; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ---- run, status, table ----


def test_run_then_status_then_table(run, tmp_path):
    status, out, err = run("run", "measured", "--seeds", "0,1", "--out", "here")
    assert status == 0
    assert "4 of 4 steps finished, 4 of them now" in out and "table here" in out
    assert err.count("\n") == 4 and "left" in err
    status, out, err = run("run", "measured", "--seeds", "0,1", "--out", "here")
    assert status == 0 and "4 of 4 steps finished, 0 of them now" in out and err == ""
    status, out, err = run("status", "here")
    assert (
        status == 0 and "measured on toy/model (0123456789abcdef)" in out and "4 of 4 steps finished" in out
    )
    assert "profile paper, seeds 0, 1: " in out
    assert run("run", "measured", "--seeds", "0", "--names", "0,2", "--out", "drawn")[0] == 0
    assert "profile paper, seeds 0, names 0, 2: " in run("status", "drawn")[1]

    status, out, err = run("table", "here")
    assert (
        status == 0
        and "75 to 75" not in out
        and "50 [" in out
        and "paper" in out
        and "2 : 0 of 4   0.5" in out
    )
    assert run("table", "here", "--no-compare")[1].count("Holm") == 0
    status, out, err = run("table", "here", "--form", "csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    assert [float(line["share"]) for line in lines] == [0.5, 1.0]
    status, out, err = run("table", "here", "--form", "json", "--experiment", "measured")
    assert [entry["rule"] for entry in json.loads(out)["entries"]] == ["mean", "arrow-products"]
    status, out, err = run("table", "here", "--form", "markdown")
    assert out.startswith("### ") and "| setup-2: hop1+hop2 mean |" in out
    assert run("keep", "here", "kept", "--out", "data")[0] == 0
    status, kept, err = run("table", Path("data", "kept"), "--form", "markdown")
    assert status == 0 and kept == out
    refused(run("table", Path("data", "kept"), "--experiment", "measured"), "no run's folder")
    refused(run("table", "here", "--experiment", "toys"), "no run of toys", "measured")
    Path("here", "run.json").unlink()  # and what is left is a folder of measurements
    status, alone, err = run("table", "here", "--form", "markdown")
    assert status == 0 and alone == out


def test_several_experiments_are_one_command(run):
    status, out, _ = run("run", "measured", "toys", "measured", "--seeds", "0", "--out", "here")
    finished = re.search(r"(\d+) of (\d+) steps finished, (\d+) of them now", out)
    assert status == 0 and len(set(finished.groups())) == 1
    listed = {entry["experiment"]: entry["steps"] for entry in Store("here", write=False).runs()}
    assert list(listed) == ["measured", "toys"] and sum(map(len, listed.values())) == int(finished[1])
    refused(run("run", "toys", "none", "--out", "new"), "there is no experiment 'none'")
    assert not Path("new").exists()


def test_results_of_several_runs_share_a_folder(run):
    assert run("run", "measured", "--seeds", "0", "--out", "here")[0] == 0
    out = run("run", "measured", "--seeds", "0,1", "--out", "here")[1]
    assert "4 of 4 steps finished, 2 of them now" in out
    assert run("run", "needing", "--out", "here")[0] == 1
    out = run("table", "here", "--experiment", "needing", "--form", "csv")[1]
    assert [line["items"] for line in csv.DictReader(io.StringIO(out))] == ["1"]
    refused(run("table", "here", "--experiment", "toys"), "no run of toys", "measured, needing")
    assert len(Store("here", write=False).runs()) == 3


def test_a_failed_step_is_listed_and_the_others_are_kept(run):
    status, out, err = run("run", "needing", "--out", "here")
    assert status == 1 and "1 of 2 steps finished" in out
    assert "1 failed:\n  ties, seed 0: no such model here: give another\n" in err
    status, out, err = run("status", "here")
    assert status == 1 and "1 of 2 steps finished" in out and "missing:\n  ties, seed 0" in out
    assert "failed, with traceback" in out


def test_limit_ends_a_call_after_so_many_steps(run):
    for finished in (2, 4):
        status, out, _ = run("run", "measured", "--seeds", "0,1", "--limit", "2", "--out", "here")
        assert status == 0 and f"{finished} of 4 steps finished, 2 of them now" in out
    assert "table here" in out


def test_status_names_what_is_not_trusted(run, tmp_path):
    run("run", "toys", "--out", "here")
    victim = next((tmp_path / "here" / "steps").glob("make-*"))
    (victim / "parts" / "0.txt").write_text("changed")
    (tmp_path / "here" / "note.txt").write_text("mine")
    status, out, err = run("status", "here")
    assert status == 1
    assert f"steps/{victim.name}/parts/0.txt: has 7 bytes" in out and "note.txt: is foreign" in out
    assert "3 of 4 steps finished" in out and "missing:\n  make " in out
    status, out, err = run("run", "toys", "--out", "here")
    assert status == 0 and "set aside" in err and "4 of 4 steps finished, 1 of them now" in out
    (tmp_path / "here" / "note.txt").unlink()
    status, out, err = run("status", "here")
    assert status == 0 and "set aside earlier" in out
    (tmp_path / "here" / "run.json").write_text("{}")
    status, out, err = run("status", "here")
    assert status == 1 and "run.json: is no file of ours" in out


def test_bad_arguments_are_one_line(run, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thing").touch()
    refused(run("run", "none"), "there is no experiment 'none'", "measured")
    refused(run("run", "toys", "--seeds", "a,b"), "--seeds is 'a,b'", "0,1,2")
    refused(run("run", "toys", "--seeds", "1,1"), "each once")
    refused(run("run", "toys", "--profile", "huge"), "there is no profile 'huge'", *sizes.PROFILES)
    refused(run("run", "toys", "--out", "file"), "is a file")
    refused(run("run", "toys", "--out", "other"), "holds other things (thing)")
    refused(run("run", "toys", "--limit", "0"), "--limit")
    refused(run("status", "missing"), "is not there")
    refused(run("table", "missing"), "is not there")
    refused(run("table", "file"), "is a file")
    refused(run("table", "other"), "holds no measurements")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]


PROGRAM = """
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, sys.argv.pop())
from toy_steps import Conditions, plan

steps = plan(1, Conditions(Path(sys.argv.pop()), pause=1.0))
toys = SimpleNamespace(plan=lambda base, profile, seeds, names: steps)
base = SimpleNamespace(id="toy", digest="01", world={})
# The real ones import torch, which takes longer than all the rest.
sys.modules["llm_experiments.experiments.registry"] = SimpleNamespace(EXPERIMENTS={"toys": toys})
sys.modules["llm_experiments.experiments.sizes"] = SimpleNamespace(
    PROFILES={"embedded": SimpleNamespace(name="embedded")}
)
from llm_experiments import __main__ as command
from llm_experiments.commands import options
from llm_experiments.domains.task import TaskError

options.chosen = lambda **model: options.Chosen(base, None)
command.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_command_says_what_is_kept_and_goes_on(tmp_path, number):
    """The real thing: a process of the command line's own code, ended while a step is computed."""
    (tmp_path / "program.py").write_text(PROGRAM)
    line = [sys.executable, "program.py", "run", "toys", "--out", "out", "log", str(Path(__file__).parent)]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert "make 0" in process.stderr.readline()
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number, err
    assert err == "stopped: 1 of 2 steps are finished; the same command goes on\n" and out == ""
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "2 of 2 steps finished, 1 of them now" in done.stdout


# ---- models ----


@pytest.mark.parametrize(
    "changed, suffix",
    [
        ({}, ""),
        ({"dtype": "bfloat16"}, "-bfloat16"),
        ({"dtype": "bfloat16", "four_bit": True}, "-bfloat16-nf4"),
    ],
)
def test_what_a_model_computes_in_is_part_of_its_digest(monkeypatch, tmp_path, changed, suffix):
    found = sources.Source("toy", "folder", tmp_path, "0123456789abcdef")
    monkeypatch.setattr(sources, "find", lambda name, revision: found)
    given = {"dtype": "float32", "device": "cpu", "four_bit": False, "revision": None, **changed}
    with pytest.raises(ModelError, match="'toy' has no tokenizer"):
        options.chosen(model="toy", **given)
    (tmp_path / "tokenizer.json").touch()
    base = options.chosen(model="toy", **given).base
    assert (base.id, base.digest, base.world) == ("toy", f"0123456789abcdef{suffix}", None)


def test_a_missing_model_is_refused_before_anything_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        sys, "argv", ["x", "run", "quick", "--model", "./nowhere", "--out", str(tmp_path / "new")]
    )
    with pytest.raises(SystemExit) as ended:
        command.main()
    refused((ended.value.code, *capsys.readouterr()), "nowhere")
    assert list(tmp_path.iterdir()) == []


# ---- adapters, data, pretraining ----


@pytest.fixture
def folders(tmp_path):
    """Two adapters that fit together, one of another rank, one that is a DoRA."""
    torch.manual_seed(0)
    ranks = {"one": 2, "two": 2, "three": 3, "dora": 2}
    for name, rank in ranks.items():
        modules = {f"layers.{i}.up_proj": LoRA(torch.randn(6, rank), torch.randn(4, rank)) for i in range(2)}
        peft_files.write(tmp_path / name, name, modules, "base")
    config = json.loads((tmp_path / "dora" / "adapter_config.json").read_text())
    (tmp_path / "dora" / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    return [tmp_path / name for name in ranks]


def test_check_refuses_by_name(run, folders):
    one, two, three, dora = folders
    status, out, _ = run("check", one, two)
    assert status == 0 and out.count("fine") == 3 and "rank 2, 2 modules, base base" in out
    status, out, _ = run("check", one, dora, three, one / "nothing")
    assert status == 1
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["fine", "refused", "fine", "refused", "fine", "note"]
    assert "DoRA" in lines[1] and "nothing" in lines[3] and "one 2, three 3" in lines[5]


def test_merge_writes_the_merge_as_one_adapter(run, folders, tmp_path):
    one, two, _, dora = folders
    status, out, _ = run("merge", one, two, "--rule", "sum", "--weights", "0.5,2", "--out", "merged")
    assert status == 0 and "rank 4" in out
    parts = [
        peft_files.read(folder).modules["layers.0.up_proj"] for folder in (one, two, tmp_path / "merged")
    ]
    first, second, merged = (part.write @ part.read.T for part in parts)
    assert torch.allclose(merged, 0.5 * first + 2 * second, atol=1e-5)
    status, out, _ = run("merge", one, two, "--rule", "dare_ties", "--out", "other")
    assert status == 0 and out.startswith("dare_ties: the rule dare-ties-factors, Delta = ")
    refused(run("merge", one, two, "--rule", "linear", "--weights", "1,-1", "--out", "new"), "use 'sum'")
    refused(run("merge", one, two, "--out", "merged"), "is there already")
    refused(run("merge", one, two, "--out", "new", "--rule", "arrow-products", "--rank", "1"), "--rank")
    refused(run("merge", one, two, "--out", "new", "--weights", "1"), "weights")
    refused(run("merge", one, dora, "--out", "new"), "DoRA")
    assert not (tmp_path / "new").exists()


def test_adapters_of_one_name_are_called_by_their_folders(run, folders, tmp_path):
    """As those are that runs train."""
    modules = peft_files.read(folders[0]).modules
    for place in ("a", "b"):
        peft_files.write(tmp_path / place / "adapter", "adapter", modules, "base")
    both = [tmp_path / place / "adapter" for place in ("a", "b")]
    assert run("check", *both)[0] == run("merge", *both, "--out", "merged")[0] == 0
    assert all(str(folder) in (tmp_path / "merged" / "README.md").read_text() for folder in both)
    refused(run("merge", both[0], both[0], "--out", "new"), "are called")


def test_export_writes_a_data_set(run, tmp_path):
    status, _, _ = run("export", "data", "--triplets", "3", "--dataset", "F")
    assert status == 0 and "manifest.json" in {path.name for path in (tmp_path / "data").iterdir()}
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["triplets"] == 3
    refused(run("export", "data"), "not an empty folder")


def test_pretrain_writes_a_new_folder_and_never_over_the_embedded_model(run, monkeypatch):
    pretrain = pytest.importorskip("llm_experiments.embedded.pretrain")
    asked = []
    monkeypatch.setattr(pretrain, "main", lambda out, **options: asked.append((out, options)) or out)
    assert run("pretrain")[0] == run("pretrain", "--out", "new", "--seed", "3", "--no-chains")[0] == 0
    assert asked == [
        (Path("out/embedded"), {"seed": 0, "chains": True}),
        (Path("new"), {"seed": 3, "chains": False}),
    ]
