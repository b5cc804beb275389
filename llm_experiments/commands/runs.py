"""Runs: `list` what can be run, `run` it or go on with it, and the `status` of a folder of results."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm_experiments.commands import options
from llm_experiments.commands.options import FOLDER, profile_named, training_seeds
from toytransformer.command_line import RegularFile, needs_extra
from toytransformer.working import Bar, ending

if TYPE_CHECKING:
    from llm_experiments.engine.runs import Run
    from llm_experiments.engine.steps import Plan
    from llm_experiments.engine.store import Store
    from llm_experiments.models.handle import LoadedModel

#: Where results go unless --out says otherwise; experiments that share steps share them there.
OUT = Path("out") / "llm"
#: Lines of a list that are shown before it is cut.
SHOWN = 12


@click.command("list")
@options.model_options
@click.option("--profile", "profile_name", help="Count steps for this profile.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Training seeds, by comma.")
@click.option("--count", is_flag=True, help="Count the steps of each experiment; takes up to a minute.")
@needs_extra("llm")
def list_names(profile_name: str | None, seeds: str, count: bool, **model: Any) -> None:
    """Show the experiments, the profiles and the models."""
    from llm_experiments.domains.task import TaskError
    from llm_experiments.experiments.registry import EXPERIMENTS
    from llm_experiments.experiments.sizes import PROFILES
    from llm_experiments.models.known import KNOWN_MODELS

    console = Console(highlight=False)
    console.print("[bold]Experiments[/bold]: run NAME, or STUDY.toml for a study of your own")
    base = options.chosen(**model).base if count else None
    table = Table(box=box.SIMPLE, show_header=count)
    for heading in ("", "", "in the paper", *(["steps"] if count else [])):
        table.add_column(heading)
    shown, uncounted = count and sys.stderr.isatty(), []
    with Bar(transient=True, disable=not shown, console=Console(stderr=True)) as bar:
        for name, experiment in bar.track(EXPERIMENTS.items(), description="counting"):
            row = [name, escape(experiment.about), escape(experiment.source)]
            if base is not None:
                try:
                    planned = experiment.plan(base, profile_named(profile_name, base), training_seeds(seeds))
                    row.append(str(len(planned.order())))
                except TaskError as error:  # such as data that are not here
                    row.append("?")
                    uncounted.append(f"{name}: {error}")
            table.add_row(*row)
    console.print(table)
    for line in uncounted:
        console.print(escape(line), soft_wrap=True)
    console.print("[bold]Profiles[/bold]: --profile NAME")
    table = Table(box=box.SIMPLE, show_header=False)
    for name, profile in PROFILES.items():
        table.add_row(name, escape(profile.about))
    console.print(table)
    console.print("[bold]Models[/bold]: --model ID, or any other causal model: hub id, folder or .gguf file")
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    for known in KNOWN_MODELS.values():
        size = "" if known.parameters is None else f"{known.parameters / 1e9:.2g} B parameters"
        table.add_row(known.id, "the paper's" if known.paper else "small", size, known.license)
    console.print(table)


@click.command("run")
@click.argument("names", nargs=-1, required=True, metavar="NAME..|STUDY.toml")
@options.model_options
@click.option("--seeds", default="0,1,2", show_default=True, help="Training seeds, by comma.")
@click.option("--names", "draws", default="0", show_default=True, help="Draws of names, by comma.")
@click.option("--profile", "profile_name", help="Size of the measurement (see `list`).")
@click.option(
    "--logprobs",
    type=click.Choice(["none", "direct", "all"]),
    help="Of which questions log-probabilities are kept: all is those of chains' steps too.",
)
@click.option(
    "--out", type=FOLDER, help=f"Folder of the results [{OUT}; of a study, out/ and the study's name]."
)
@click.option("--limit", type=click.IntRange(min=1), help="Compute at most so many steps in this call.")
@click.option("--count", is_flag=True, help="Say what there is to do and stop.")
@click.option("--worker", is_flag=True, help="Share --out with workers on other hosts (docs/cluster.md).")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: by actors on a Ray cluster that have --out in common.",
)
@click.option("--address", help="Of the Ray cluster, or auto; without it one is made on this host.")
@click.option("--gpus", type=click.FloatRange(min=0), help="GPUs of each Ray actor [1 where there are any].")
@click.option("--cpus", type=click.IntRange(min=1), default=1, show_default=True, help="CPUs of each.")
@click.option(
    "--unsafe-code", is_flag=True, help="Run programs that a model wrote without a sandbox, where none works."
)
@needs_extra("llm")
def run_experiments(
    names: tuple[str, ...],
    out: Path | None,
    limit: int | None,
    count: bool,
    worker: bool,
    engine: str,
    address: str | None,
    gpus: float | None,
    cpus: int,
    unsafe_code: bool,
    **given: Any,
) -> int:
    """Run experiments, or go on with them.

    NAME is one of `list`, STUDY.toml a study of your own: your adapters, your questions (docs/study.md).
    Finished steps are kept whatever happens, and never computed twice. Several processes may run into one
    folder at once; on several hosts, each with --worker. Exit status 1 if a step failed.
    """
    from llm_experiments.engine.context import Context
    from llm_experiments.engine.leases import SECONDS
    from llm_experiments.engine.local import run as run_steps
    from llm_experiments.engine.store import Store

    studies = [name for name in names if name.endswith(".toml")]
    if studies and len(names) > 1:
        raise click.UsageError(f"{studies[0]!r} is a study of its own: run it alone")
    planned = _study(Path(names[0]), **given) if studies else _experiments(names, **given)
    out = out or planned.out
    if studies or count:
        from llm_experiments.experiments.registry import Work

        work = Work.of(planned.whole)
        click.echo(
            f"{work.adapters:,} adapters to train on {work.examples:,} examples (repeats counted), "
            f"{work.questions:,} questions to answer: {len(planned.whole.order())} steps",
            err=not count,
        )
        if count:
            return 0
    _require_sandbox(planned.whole, unsafe_code)
    store = Store(out, lease=SECONDS if worker or engine == "ray" else None)
    for about, plan in planned.runs:
        for problem in store.add_run(about, plan.listed()):
            click.echo(f"set aside {problem}", err=True)
    order = [step.address for step in planned.whole.order()]
    wanted = None if limit is None else [address for address in order if not store.finished(address)][:limit]

    def stopped() -> str:
        there = sum(store.path(address).exists() for address in order)
        return f"stopped: {there} of {len(order)} steps are finished; the same command goes on"

    with ending(stopped):
        if engine == "ray":
            from llm_experiments.engine import ray

            cluster = ray.Cluster(address, gpus, cpus)
            summary = ray.run(planned.whole, store, planned.load, cluster, wanted=wanted)
        else:
            summary = run_steps(planned.whole, store, Context(store, planned.load), wanted=wanted)
    finished = sum(map(store.finished, order))
    click.echo(f"{finished} of {len(order)} steps finished, {len(summary.computed)} of them now: {out}")
    if summary.failed:
        click.echo(f"{len(summary.failed)} failed:", err=True)
        for line in summary.failed.values():
            click.echo(f"  {line}", err=True)
    elif finished == len(order):
        click.echo(f"{click.get_current_context().find_root().info_name} table {out}")
    return summary.status


def _require_sandbox(plan: Plan, unsafe: bool) -> None:
    """Refuse, before anything is trained, what would run programs where nothing confines them."""
    from llm_experiments.scoring import SCORERS
    from llm_experiments.scoring.programs import MISSING, UNSAFE, sandbox, unsafe_allowed

    if unsafe:
        os.environ[UNSAFE] = "1"  # read by scorers, in other processes too
    scorers = {getattr(getattr(step, "reading", step), "scorer", None) for step in plan.steps.values()}
    runs = any(SCORERS[name].runs for name in scorers if name is not None)
    if runs and not unsafe_allowed() and sandbox() is None:
        raise click.UsageError(MISSING)


class Planned(NamedTuple):
    """What is to be run: all steps, the runs they are listed under, the model, and where results go."""

    whole: Plan
    runs: Sequence[tuple[Mapping[str, object], Plan]]
    load: Callable[[], LoadedModel]
    out: Path


def _experiments(
    names: tuple[str, ...],
    seeds: str,
    draws: str,
    profile_name: str | None,
    logprobs: str | None,
    **model: Any,
) -> Planned:
    """Experiments by name, on the model and under the profile that the options say."""
    from llm_experiments.engine.steps import Plan
    from llm_experiments.experiments.registry import EXPERIMENTS

    if unknown := [name for name in names if name not in EXPERIMENTS]:
        raise click.UsageError(f"there is no experiment {unknown[0]!r}: choose {', '.join(EXPERIMENTS)}")
    drawn, worlds = training_seeds(seeds), training_seeds(draws, "--names")
    model_chosen = options.chosen(**model)
    base = model_chosen.base
    profile = profile_named(profile_name, base)
    if logprobs is not None:
        profile = replace(profile, logprobs=logprobs)
    about: dict[str, object] = {"model": base.id, "digest": base.digest}
    about |= {"seeds": list(drawn), "profile": profile.name}
    about |= {} if worlds == (0,) else {"names": list(worlds)}
    whole, runs = Plan(), []
    for name in dict.fromkeys(names):
        plan = EXPERIMENTS[name].plan(base, profile, drawn, worlds)
        whole.include(plan)
        runs.append(({"experiment": name, **about}, plan))
    return Planned(whole, runs, model_chosen.load, OUT)


#: Options of `run` that a study says itself, and where.
IN_A_STUDY = {
    "model": "base",
    "revision": "revision",
    "seeds": "[run] seeds",
    "draws": "its own questions",
    "profile_name": "[training] profile",
}


def _study(file: Path, logprobs: str | None, **given: Any) -> Planned:
    """A study of one's own; of the options those count that say how to compute."""
    from llm_experiments.domains.own.planning import planned
    from llm_experiments.domains.own.study import StudyFile
    from llm_experiments.experiments.registry import EXPERIMENTS
    from llm_experiments.models.shapes import base_shapes

    source = click.get_current_context().get_parameter_source
    for name, where in IN_A_STUDY.items():
        if source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"a study says that itself ({where}): leave the option out")
    study = StudyFile.read(RegularFile().convert(file, None, None))
    if study.name in EXPERIMENTS:
        raise click.UsageError(f"{file}: name {study.name!r} is an experiment's: give the study another")
    if logprobs is not None:
        study = replace(study, profile=replace(study.profile, logprobs=logprobs))
    how = {name: given[name] for name in ("dtype", "device", "four_bit")}
    model = options.chosen(study.base, study.revision, **how)
    plan = planned(study, model.base, base_shapes(study.base, revision=study.revision))
    # Without seeds and profile: a study that was changed takes the place of what it was.
    about = {"experiment": study.name, "model": model.base.id, "digest": model.base.digest}
    return Planned(plan, [(about, plan)], model.load, Path("out") / study.name)


@click.command()
@click.argument("folder", type=FOLDER)
@needs_extra("llm")
def status(folder: Path) -> int:
    """Show what is finished in a run's folder, missing or not trusted.

    Every byte of every result is read. Exit status 1 if something is missing, damaged or foreign.
    """
    from llm_experiments.engine.addresses import Address
    from llm_experiments.engine.progress import Entry, Estimate, duration
    from llm_experiments.engine.store import Store

    store = Store(folder, write=False)
    console = Console(highlight=False, soft_wrap=True)
    problems = store.problems()
    missing_any = False
    runs = _runs(store)
    for entry in runs:
        listed = [Address(step["address"]) for step in entry["steps"]]
        labels = {step["address"]: step["label"] for step in entry["steps"]}
        missing = [address for address in listed if not store.finished(address)]
        missing_any = missing_any or bool(missing)
        total = len(listed)
        about = f"{entry.get('model')} ({entry.get('digest')})"
        about += f", profile {profile}" if (profile := entry.get("profile")) else ""
        for what, drawn in (("seeds", entry.get("seeds")), ("names", entry.get("names"))):
            about += f", {what} {', '.join(map(str, drawn))}" if drawn else ""
        console.print(
            f"[bold]{_plain(entry['experiment'])}[/bold] on {_plain(about)}: "
            f"{total - len(missing)} of {total} steps finished"
        )
        if missing:
            entries = (Entry(address.kind, address, labels[address]) for address in listed)
            left = Estimate(entries, store.seconds).left()
            console.print(f"  about {duration(left)} left; missing:")
            _print_some(console, [labels[address] for address in missing])
    if not runs:
        console.print("nothing known was run into this folder")
    if failures := sorted((folder / "failures").glob("*.txt")):
        console.print("failed, with traceback:")
        _print_some(console, [str(path) for path in failures])
    if problems:
        console.print("not trusted:")
        for problem in problems:
            console.print(f"  {_plain(str(problem))}")
    if rejected := store.rejected():
        console.print(f"set aside earlier, in {folder / 'rejected'}:")
        _print_some(console, rejected)
    return int(bool(problems) or missing_any)


def _plain(text: str) -> str:
    """What a file says, or is called, as one line of text that is not markup."""
    from llm_experiments.models.files import printable

    return escape(printable(text))


def _runs(store: Store) -> list[Run]:
    """The runs of a folder; none where run.json is damaged, which problems() says."""
    from llm_experiments.engine.sealing import StoreError

    try:
        return store.runs()
    except StoreError:
        return []


def _print_some(console: Console, lines: list[str]) -> None:
    for line in lines[:SHOWN]:
        console.print(f"  {_plain(line)}")
    if len(lines) > SHOWN:
        console.print(f"  .. and {len(lines) - SHOWN} more")
