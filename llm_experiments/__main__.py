"""Command line of the measurements: `python -m llm_experiments list | run NAME | status DIR | ..`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from toytransformer.command_line import run as run_command

if TYPE_CHECKING:
    from llm_experiments.engine.store import Store
    from llm_experiments.experiments.sizes import Profile
    from llm_experiments.experiments.two_hop import Base
    from llm_experiments.models.models import LoadedModel

#: Where results go unless --out says otherwise; experiments that share cells share them there.
OUT = Path("out") / "llm"
#: Lines of a list that are shown before it is cut.
SHOWN = 12

FOLDER = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Measure on language models what the theory predicts: train adapters, merge them, ask."""


def model_options(command: Callable) -> Callable:
    """The options that say which model is used, and how."""
    for option in reversed(
        (
            click.option(
                "--model",
                default="embedded",
                show_default=True,
                help="embedded, a hub id, a folder or a .gguf file.",
            ),
            click.option("--revision", help="Branch, tag or commit of a hub id."),
            click.option(
                "--dtype",
                type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
                default="auto",
                show_default=True,
            ),
            click.option(
                "--device",
                default="auto",
                show_default=True,
                help="auto, cpu, cuda, cuda:0, .., or split over all GPUs.",
            ),
            click.option("--four-bit", is_flag=True, help="Load the base in 4 bits (bitsandbytes, GPU)."),
        )
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class Chosen:
    """A model as the options say: what planning has to know of it, and how it is loaded when needed."""

    base: Base
    load: Callable[[], LoadedModel]


def chosen(model: str, revision: str | None, dtype: str, device: str, four_bit: bool) -> Chosen:
    """Find the model without loading it.

    What it computes in changes its answers, and so is part of the digest that keys are made of, unless it is
    float32.
    """
    from llm_experiments.embedded.corpus import BaseWorld
    from llm_experiments.experiments.two_hop import Base
    from llm_experiments.models import devices, models, sources

    gpus = devices.gpus_for(device, devices.free_memory())
    if dtype == "auto":
        dtype = str(devices.automatic_dtype(gpus)).removeprefix("torch.")
    source = sources.find(model, revision=revision)
    precision = [dtype] * (dtype != "float32") + ["nf4"] * four_bit
    world = source.folder / "world.json"
    base = Base(
        source.id,
        "-".join([source.digest, *precision]),
        BaseWorld.read(world) if world.is_file() else None,
    )

    def load() -> LoadedModel:
        if source.kind == "embedded" and not gpus:
            # Its matrices are small: a second thread costs more than it saves, and one gives the same sums
            # whatever the number of cores.
            import torch

            torch.set_num_threads(1)
        return models.load(model, dtype=dtype, device=device, four_bit=four_bit, revision=revision)

    return Chosen(base, load)


@cli.command("list")
@model_options
@click.option("--profile", "profile_name", help="Count cells for this profile.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Training seeds, by comma.")
@click.option("--count", is_flag=True, help="Count the cells of each experiment; takes some seconds.")
def list_names(profile_name: str | None, seeds: str, count: bool, **model: Any) -> None:
    """Show the named experiments, the profiles and the models by hub id."""
    from llm_experiments.engine.local import in_order
    from llm_experiments.experiments.sizes import PROFILES
    from llm_experiments.experiments.two_hop import EXPERIMENTS
    from llm_experiments.models.models import PAPER_MODELS, SMALL_MODELS

    console = Console(highlight=False)
    console.print("[bold]Experiments[/bold]: run NAME")
    base = chosen(**model).base if count else None
    table = Table(box=box.SIMPLE, show_header=count)
    for heading in ("", "", "in the paper", *(["cells"] if count else [])):
        table.add_column(heading)
    for name, experiment in EXPERIMENTS.items():
        row = [name, escape(experiment.about), escape(experiment.source)]
        if base is not None:
            planned = experiment.plan(base, _profile(profile_name, base), _seeds(seeds))
            row.append(str(len(in_order(planned))))
        table.add_row(*row)
    console.print(table)
    console.print("[bold]Profiles[/bold]: --profile NAME")
    table = Table(box=box.SIMPLE, show_header=False)
    for name, profile in PROFILES.items():
        table.add_row(name, escape(profile.about))
    console.print(table)
    console.print("[bold]Models[/bold]: --model ID, or any other causal model: hub id, folder or .gguf file")
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    for models, where in ((SMALL_MODELS, "small"), (PAPER_MODELS, "the paper's")):
        for known in models.values():
            size = "" if known.parameters is None else f"{known.parameters / 1e9:.2g} B parameters"
            table.add_row(known.id, where, size, known.license)
    console.print(table)


@cli.command("run")
@click.argument("names", nargs=-1, required=True, metavar="NAME..")
@model_options
@click.option("--seeds", default="0,1,2", show_default=True, help="Training seeds, by comma.")
@click.option("--profile", "profile_name", help="Size of the measurement (see `list`).")
@click.option("--out", type=FOLDER, default=OUT, show_default=True, help="Folder of the results.")
@click.option("--limit", type=click.IntRange(min=1), help="Compute at most so many cells in this call.")
def run_experiments(
    names: tuple[str, ...], seeds: str, profile_name: str | None, out: Path, limit: int | None, **model: Any
) -> int:
    """Run the experiments of these names, or go on with them; exit status 1 if a cell failed.

    Finished cells are kept whatever happens, and never computed twice. Several processes may run into one
    folder at once.
    """
    from llm_experiments.engine.local import Context, Stopped, in_order
    from llm_experiments.engine.local import run as run_cells
    from llm_experiments.engine.store import Store
    from llm_experiments.experiments.two_hop import EXPERIMENTS

    if unknown := [name for name in names if name not in EXPERIMENTS]:
        raise click.UsageError(f"there is no experiment {unknown[0]!r}: choose {', '.join(EXPERIMENTS)}")
    training_seeds = _seeds(seeds)
    model_chosen = chosen(**model)
    base = model_chosen.base
    profile, store = _profile(profile_name, base), Store(out)
    planned = {name: in_order(EXPERIMENTS[name].plan(base, profile, training_seeds)) for name in names}
    about = {"model": base.id, "digest": base.digest, "seeds": list(training_seeds), "profile": profile.name}
    for name, cells in planned.items():
        listed = [{"name": cell.address, "label": cell.label} for cell in cells]
        for problem in store.add_run({"experiment": name, **about}, listed):
            click.echo(f"set aside {problem}", err=True)
    wanted = order = in_order(chain.from_iterable(planned.values()))
    if limit is not None:
        order = [cell for cell in order if not store.finished(cell.address)][:limit]
    try:
        summary = run_cells(order, store, Context(store, model_chosen.load))
    except KeyboardInterrupt as stop:
        finished = sum(store.path(cell.address).exists() for cell in wanted)
        click.echo(
            f"stopped: {finished} of {len(wanted)} cells are finished; the same command goes on", err=True
        )
        sys.exit(143 if isinstance(stop, Stopped) else 130)
    finished = sum(store.finished(cell.address) for cell in wanted)
    click.echo(f"{finished} of {len(wanted)} cells finished, {len(summary.computed)} of them now: {out}")
    if summary.failed:
        click.echo(f"{len(summary.failed)} failed:", err=True)
        for line in summary.failed.values():
            click.echo(f"  {line}", err=True)
    elif finished == len(wanted):
        click.echo(f"python -m llm_experiments table {out}")
    return summary.status


@cli.command()
@click.argument("folder", type=FOLDER)
def status(folder: Path) -> int:
    """Show what is finished in FOLDER, what is missing and what is not trusted.

    Every byte of every result is read. Exit status 1 if something is missing, damaged or foreign.
    """
    from llm_experiments.engine.progress import Estimate, duration
    from llm_experiments.engine.store import Store

    store = Store(folder, write=False)
    console = Console(highlight=False, soft_wrap=True)
    problems = store.problems()
    missing_any = False
    runs = _runs(store)
    for entry in runs:
        missing = [cell for cell in entry["cells"] if not store.finished(cell["name"])]
        missing_any = missing_any or bool(missing)
        total = len(entry["cells"])
        seeds = ", ".join(map(str, entry.get("seeds", ())))
        console.print(
            f"[bold]{escape(str(entry['experiment']))}[/bold] on {escape(str(entry.get('model')))} "
            f"({entry.get('digest')}), profile {entry.get('profile')}, seeds {seeds}: "
            f"{total - len(missing)} of {total} cells finished"
        )
        if missing:
            left = Estimate((Planned(cell["name"]) for cell in entry["cells"]), store).left()
            console.print(f"  about {duration(left)} left; missing:")
            _print_some(console, [cell["label"] for cell in missing])
    if not runs:
        console.print("nothing known was run into this folder")
    if failures := sorted((folder / "failures").glob("*.txt")):
        console.print("failed, with traceback:")
        _print_some(console, [str(path) for path in failures])
    if problems:
        console.print("not trusted:")
        for problem in problems:
            console.print(f"  {escape(str(problem))}")
    if rejected := store.rejected():
        console.print(f"set aside earlier, in {folder / 'rejected'}:")
        _print_some(console, rejected)
    return int(bool(problems) or missing_any)


@dataclass(frozen=True)
class Planned:
    """A cell as run.json knows it."""

    address: str

    @property
    def kind(self) -> str:
        return self.address.rpartition("-")[0]


def _runs(store: Store) -> list[dict[str, Any]]:
    """The runs of a folder; none where run.json is damaged, which problems() says."""
    from llm_experiments.engine.sealing import StoreError

    try:
        return store.runs()
    except StoreError:
        return []


def _print_some(console: Console, lines: list[str]) -> None:
    for line in lines[:SHOWN]:
        console.print(f"  {escape(line)}")
    if len(lines) > SHOWN:
        console.print(f"  .. and {len(lines) - SHOWN} more")


@cli.command()
@click.argument("source", type=FOLDER)
@click.option("--experiment", help="Only the rows of this experiment.")
@click.option(
    "--form",
    type=click.Choice(["terminal", "markdown", "csv", "json"]),
    default="terminal",
    show_default=True,
)
@click.option("--compare/--no-compare", default=True, help="Paired tests on the same questions.")
def table(source: Path, experiment: str | None, form: str, compare: bool) -> None:
    """Print tables of the rows in SOURCE, a run's folder or a rows.jsonl.gz."""
    from llm_experiments.engine.store import Store
    from results import forms, tables

    others: list[dict[str, Any]] = []
    if source.is_file():
        records = tables.read_file(source)
    else:
        store = Store(source, write=False)
        runs = [run for run in store.runs() if experiment in (None, run["experiment"])]
        if not runs:
            names = ", ".join(sorted({run["experiment"] for run in store.runs()})) or "none"
            raise click.UsageError(f"no run of {experiment or 'anything'} in '{source}': there are {names}")
        only = None if experiment is None else {cell["name"] for run in runs for cell in run["cells"]}
        records = tables.read_rows(store.rows(only=only), str(source))
        for name in store.row_files():
            if name != "rows.jsonl":
                others += map(json.loads, store.rows(name, only=only))
    entries = tables.entries(records, experiment=experiment)
    compared = tables.comparisons(records) if compare else []
    if form == "json":
        click.echo(forms.as_json(entries, compared, others), nl=False)
    elif form == "csv":
        click.echo(forms.as_csv(entries), nl=False)
    else:
        grids = forms.grids(entries, compared) + forms.other_rows(others)
        if form == "markdown":
            click.echo(forms.markdown(grids), nl=False)
        else:
            forms.print_rich(grids, Console(highlight=False))
        if not grids:
            click.echo(f"no rows in '{source}' yet", err=True)


@cli.command()
@click.argument("folder", type=FOLDER)
@click.argument("name")
@click.option("--out", type=FOLDER, default=Path(__file__).parent / "data", help="Where to [data/ here].")
def keep(folder: Path, name: str, out: Path) -> None:
    """Keep the rows of FOLDER as NAME.jsonl.gz, and how its adapters came out as NAME-cells.jsonl.gz."""
    from llm_experiments.keep import keep as keep_rows

    for path in keep_rows(folder, name, out):
        click.echo(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")


@cli.command()
def results() -> None:
    """Write README.md and docs/results.md from their templates and the kept rows."""
    from results.pages import PAGES, render

    for page, template in PAGES.items():
        page.write_text(render(template), encoding="utf-8")
        click.echo(page.name)


@cli.command()
@click.option(
    "--out",
    type=FOLDER,
    default=Path("out") / "embedded",
    show_default=True,
    help="New folder for the model.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--chains/--no-chains", default=True, show_default=True, help="Show chains of thought.")
def pretrain(out: Path, seed: int, chains: bool) -> None:
    """Train a model like the embedded one from nothing on a synthetic world; use it by --model FOLDER."""
    from llm_experiments.embedded.pretrain import main as train_embedded

    click.echo(f"{train_embedded(out, seed=seed, chains=chains)}")


@cli.command()
@click.argument("out", type=FOLDER)
@click.option("--dataset", type=click.Choice(["F", "H", "R"]), default="F", show_default=True)
@click.option("--triplets", type=click.IntRange(min=3), default=100, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--bridge", type=click.Choice(["F", "H", "R"]), help="Add a bridge of this dataset.")
@click.option(
    "--share", type=float, default=0.1, show_default=True, help="Triplets held out, of dev and test."
)
def export(out: Path, dataset: str, triplets: int, seed: int, bridge: str | None, share: float) -> None:
    """Write a data set as JSON lines, with a manifest, into the new folder OUT."""
    from llm_experiments.domains.two_hop.export import export as write

    manifest = write(out, dataset, triplets, seed, bridge_dataset=bridge, share=share)
    for name, file in manifest["files"].items():
        click.echo(f"{out / name}: {file}")


@cli.command()
@click.argument("adapters", nargs=-1, required=True, type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="New folder for the merged adapter.")
@click.option("--rule", default="mean", show_default=True, help="A static merge rule of the theory.")
@click.option("--weights", help="Merge weights, by comma, one for each adapter.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the rule.")
@click.option("--rank", type=click.IntRange(min=1), help="Keep this rank [all that is there].")
@click.option("--seed", type=int, default=0, show_default=True, help="For rules that draw at random.")
def merge(
    adapters: tuple[Path, ...],
    out: Path,
    rule: str,
    weights: str | None,
    options: tuple[str, ...],
    rank: int | None,
    seed: int,
) -> None:
    """Merge PEFT adapters into one that plain PEFT loads."""
    from llm_experiments.adapters.peft_files import read
    from llm_experiments.merges.merging import save_static
    from toytransformer.__main__ import _option, _weights
    from toytransformer.compositions import Merge

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise click.UsageError(f"--out '{out}' is there already: name a new folder")
    spec = Merge(rule, _weights(weights), tuple(map(_option, options)))
    details = save_static(
        [read(folder) for folder in adapters], spec, out, seed=seed, rank=rank, name=out.name
    )
    click.echo(f"{out}: rank {details['rank']}, relative error {details['relative_error']:.2g}")


@cli.command()
@click.argument("adapters", nargs=-1, required=True, type=FOLDER)
def check(adapters: tuple[Path, ...]) -> int:
    """Say of each of the ADAPTERS whether it can be merged here, and of all whether they fit together.

    Exit status 1 if one is refused.
    """
    from llm_experiments.adapters.peft_files import check_library, read
    from toytransformer.adapters import AdapterError

    library, refused = [], False
    for folder in adapters:
        try:
            library.append(read(folder))
        except AdapterError as error:
            click.echo(f"refused  {folder}: {' '.join(str(error).split())}")
            refused = True
        else:
            own = library[-1]
            click.echo(f"fine     {folder}: rank {own.rank}, {len(own.modules)} modules, base {own.base}")
    if len(library) > 1:
        try:
            check_library(library)
        except AdapterError as error:
            click.echo(f"refused  together: {' '.join(str(error).split())}")
            refused = True
        else:
            click.echo("fine     together")
    return int(refused)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"--seeds is {text!r}: give whole numbers by comma, such as 0,1,2") from None


def _profile(name: str | None, base: Base) -> Profile:
    """The profile of that name; without one "embedded" where the base's world is known, else "paper"."""
    from llm_experiments.experiments.sizes import PROFILES

    if name is None:
        name = "paper" if base.world is None else "embedded"
    if name not in PROFILES:
        raise click.UsageError(f"there is no profile {name!r}: choose {', '.join(PROFILES)}")
    return PROFILES[name]


def main() -> None:
    """Run the command line; a bad argument is one line on stderr and status 2."""
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # read when torch is loaded: do not spin on shared cores
    run_command(cli, "python -m llm_experiments")


if __name__ == "__main__":
    main()
