"""The command `lora-limits`: every package's commands under one name, and what it says of what is missing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import torch
from peft import LoraConfig, get_peft_model

import lora_limits
from figures.__main__ import main as figures_group
from llm_experiments.__main__ import cli as llm_group
from llm_experiments.adapters.peft_settings import USUAL
from toytransformer.__main__ import cli as theory_group


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (status, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["lora-limits", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            lora_limits.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def commands() -> dict[str, click.Command]:
    context = click.Context(lora_limits.cli)
    return {
        name: lora_limits.cli.get_command(context, name) for name in lora_limits.cli.list_commands(context)
    }


def test_no_command_of_a_package_is_forgotten():
    there = list(commands().values())
    assert all(command in there for group in (theory_group, llm_group) for command in group.commands.values())
    assert figures_group in there  # with all of its drawings


def test_help_says_of_every_command_what_it_does_in_one_line(run):
    status, out, err = run("--help")
    assert status == 0 and err == "" and out.count("...\n") == 1  # ARGS...
    for name, command in commands().items():
        assert f"\n  {name} " in out
        assert run(name, "--help")[1].startswith(f"Usage: lora-limits {name} "), command


def loaded(heavy, *arguments):
    """Which of these modules a command has imported when it ends."""
    code = (
        "import sys, lora_limits\n"
        f"sys.argv = ['lora-limits', *{[str(argument) for argument in arguments]}]\n"
        "try: lora_limits.main()\n"
        f"except SystemExit: print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_help_loads_nothing_heavy():
    heavy = ["jax", "numpy", "torch", "scipy", "polars", "matplotlib", "jinja2", "transformers", "pydantic"]
    assert loaded(heavy, "--help") == "[]"


def test_check_loads_neither_peft_nor_a_model(tmp_path):
    """They take seconds, and what PEFT itself writes asks nothing of them."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    get_peft_model(model, LoraConfig(r=2, target_modules=["0"])).save_pretrained(tmp_path / "one")
    assert loaded(["peft", "transformers", "jax", "polars"], "check", tmp_path / "one") == "[]"
    defaults = LoraConfig().to_dict()
    assert {name: defaults[name] for name in USUAL if name in defaults} == USUAL


def test_a_prediction_is_the_theorys(run, tmp_path):
    status, out, _ = run("predict", "two-hop", "--json", tmp_path / "records.jsonl")
    assert status == 0 and "bridge" in out and (tmp_path / "records.jsonl").exists()


@pytest.mark.parametrize(
    "arguments, word",
    [(["prdict"], "prdict"), (["predict", "nothing"], "'nothing'"), (["status", "missing"], "is not there")],
)
def test_what_is_refused_is_one_line_and_status_2(run, arguments, word):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and word in err


def test_without_arguments_the_help_is_shown(run):
    status, out, err = run()
    assert status == 2 and out == "" and "Usage: lora-limits" in err


WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import lora_limits
sys.argv[0] = "lora-limits"
lora_limits.main()
"""
LLM = {"torch", "transformers", "peft", "safetensors", "tokenizers", "polars", "jinja2", "statsmodels"}


@pytest.mark.parametrize(
    "arguments, absent, extra",
    [
        (["experiments"], LLM, "llm"),
        (["run", "quick"], LLM, "llm"),
        (["check", "somewhere"], LLM, "llm"),
        (["table", "somewhere"], {"filelock"}, "llm"),
        (["figures", "survival"], {"matplotlib"}, "figures"),
        (["figures", "all"], {"matplotlib"}, "figures"),
        (["report", "--ledger", __file__], {"matplotlib", "jinja2"}, "figures"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_install_without_an_extra_says_which_one_is_missing(tmp_path, arguments, absent, extra):
    code = WITHOUT.format(absent=sorted(absent))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and f"pip install 'lora-limits[{extra}]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


HELP_OF_EVERY_COMMAND = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import click, lora_limits
from figures.__main__ import main as figures
from llm_experiments.__main__ import cli as llm_experiments
from toytransformer.__main__ import cli as toytransformer

def show(group, path):
    print("shown:", *path)
    group.main([*path[1:], "--help"], prog_name=path[0], standalone_mode=False)

def walk(root, command, path):
    show(root, path)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            walk(root, command.get_command(context, name), [*path, name])

roots = {{"lora-limits": lora_limits.cli, "figures": figures}}
for name, root in (roots | {{"llm_experiments": llm_experiments, "toytransformer": toytransformer}}).items():
    walk(root, root, [name])
"""


def optional(*extras: str) -> set[str]:
    """Modules that these extras install, and the base does not: named as their packages are, here."""
    declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = [entry for extra in extras for entry in declared["optional-dependencies"][extra]]
    return {re.split(r"[^a-z0-9_]", entry)[0] for entry in wanted if not entry.startswith("lora-limits")}


@pytest.mark.parametrize(
    "extras", [("figures", "results", "llm"), ("llm",), ("figures",)], ids=lambda extras: " ".join(extras)
)
def test_every_command_shows_its_help_without_the_extras(tmp_path, extras):
    code = HELP_OF_EVERY_COMMAND.format(absent=sorted(optional(*extras)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("shown:")]
    assert [["lora-limits", name] in shown for name in commands()] == [True] * len(commands())
    assert done.stdout.count("Usage: ") == len(shown)
    listed = ["figures", "survival"] in shown
    assert listed == ("figures" not in extras)
    assert ("pip install 'lora-limits[figures]'" in done.stdout) == (not listed)
