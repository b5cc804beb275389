"""Whatever is typed, the commands on runs, rows and figures end in time and in one line, too."""

import itertools
import random

import click
import pytest
from hostile import call, command_lines, fault

import lora_limits

pytest.importorskip("torch", reason="the extra 'llm' is not installed")

import test_llm_command_lines

from llm_experiments import pages
from llm_experiments.commands import rows
from llm_experiments.domains.two_hop import commands as own_commands
from llm_experiments.embedded import pretrain
from llm_experiments.engine import local
from llm_experiments.models import sources

RUNS = ("run", "status", "table", "keep", "migrate", "rescore", "results", "experiments", "pretrain")
FIGURES = ("figures", "report")


def commands(names: tuple[str, ...], group: click.Group = lora_limits.cli) -> click.Group:
    """The commands of these names, as a group that has them at hand."""
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in names}
    for name, command in found.items():
        if isinstance(command, click.Group):
            found[name] = commands(tuple(command.list_commands(context)), command)
    return click.Group(commands={name: command for name, command in found.items() if command})


def words(folder):
    """Values worth trying; the folders exist, or nearly."""
    runs = {"run": "{}", "deep-run": "[" * 100_000, "old-run": '{"version": 1, "runs": [3]}'}
    for name, content in runs.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "run.json").write_text(content)
    there = [str(folder / name) for name in (*runs, "a-folder", "nowhere")]
    return {
        "names": ("quick", "table1", "survival", "edits", "nosuch", ""),
        "draws": ("0", "0,1", "1,1", "-1", "x", "1000000", str(2**70)),
        "seeds": ("0", "0,1", "1,1", "-1", "x", str(2**70)),
        "profile_name": ("embedded", "small", "nosuch"),
        "model": ("embedded", "embedded", "nosuch/model", "~nosuch/x", str(folder / "a-folder"), "a/b/c"),
        "device": ("cpu", "auto", "cuda:7", "nosuch"),
        "revision": ("main", "", "../.."),
        "seed": ("0", "1", "-1", str(2**70)),
        **{name: there for name in ("folder", "source", "old", "new", "runs", "ran", "drawings")},
    }


@pytest.fixture
def nothing_lasts(monkeypatch, tmp_path):
    """No command computes for minutes, asks a hub, or writes into the checkout."""

    def no_hub(*_, **__):
        raise sources.ModelError("the hub is not asked in this test: give another")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "snapshot", no_hub)
    monkeypatch.setattr(local, "run", lambda plan, *_, **__: local.Summary())
    monkeypatch.setattr(pretrain, "main", lambda out, **_: out)
    monkeypatch.setattr(pages, "PAGES", {})
    for command, name in ((rows.keep, "out"), (own_commands.rescore, "data")):
        (place,) = (parameter for parameter in command.params if parameter.name == name)
        monkeypatch.setattr(place, "default", tmp_path / "kept")


def thrown(count, seed, folder, names):
    # Counting plans every experiment, and drawing anew computes every prediction: minutes.
    skip = ("--count", "--fresh", "all", "theory")
    lines = command_lines(commands(names), random.Random(seed), folder, words(folder), skip)
    outcomes = (call(lora_limits.main, line, seconds=120) for line in itertools.islice(lines, count))
    found = [(fault(outcome), outcome) for outcome in outcomes]
    return [f"{what}: {repr(o.arguments)[:1000]}\n{o.err[-1000:]}" for what, o in found if what]


def test_every_command_of_a_group_is_thrown_at():
    """What one file leaves out, because it lasts or writes beside the code, this one has."""
    assert set(test_llm_command_lines.SKIP) <= set(RUNS)
    assert set(RUNS) | set(FIGURES) <= set(lora_limits.cli.list_commands(click.Context(lora_limits.cli)))


def test_a_sample_of_command_lines(nothing_lasts, tmp_path):
    assert not (found := thrown(80, 0, tmp_path, RUNS)), "\n\n".join(found[:5])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_thousands_of_command_lines(nothing_lasts, tmp_path, seed):
    assert not (found := thrown(300, seed, tmp_path, RUNS)), "\n\n".join(found[:5])


@pytest.mark.slow
def test_command_lines_of_the_figures(nothing_lasts, tmp_path):
    assert not (found := thrown(100, 0, tmp_path, FIGURES)), "\n\n".join(found[:5])
