"""The commands that only this domain has: its data set as files, features of a base model, rows read anew."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from llm_experiments.commands import options
from llm_experiments.commands.options import DATA, FOLDER, profile_named, training_seeds
from toytransformer.command_line import RegularFile, needs_extra

#: How many kept answers are read anew in a second.
ANSWERS_A_SECOND = 5000
#: Of `export`, on one core: what it says before it begins.
TRIPLETS_A_SECOND, MEGABYTES_A_TRIPLET = 90, 0.17


@click.command()
@click.option("--out", required=True, type=FOLDER, help="File to write, .npz.")
@options.model_options
@click.option("--dataset", type=click.Choice(["R", "F", "H"]), default="R", show_default=True)
@click.option("--names", type=int, default=0, show_default=True, help="Draw of names.")
@click.option(
    "--setups", default="0", show_default=True, help="Table 1's setups, by comma: their adapters' prompts."
)
@click.option("--profile", "profile_name", help="Size of the compositions (see `experiments`).")
@click.option(
    "--layers",
    default="all",
    show_default=True,
    help="all, or groups by comma: 0,3 keeps two layers, 0-9,10-19 two sums over ten.",
)
@click.option(
    "--wordings", type=click.IntRange(min=1), default=8, show_default=True, help="Training wordings."
)
@click.option("--asked", type=click.IntRange(min=1), help="Test wordings [all of the profile's].")
@needs_extra("llm")
def features(
    out: Path,
    dataset: str,
    names: int,
    setups: str,
    profile_name: str | None,
    layers: str,
    wordings: int,
    asked: int | None,
    **model: Any,
) -> None:
    """Read the features of a base model, for predictions.

    Nothing is trained. What is kept: inner products of the MLPs' features on the prompts of the setups, of
    the names in the unembedding, and the base's own log-probabilities and answers.
    """
    from llm_experiments.domains.two_hop.base_features import read
    from llm_experiments.domains.two_hop.scenes import TRIPLE, TwoHop
    from llm_experiments.engine.steps import Plan
    from toytransformer.compositions.io import require_writable

    require_writable(out)
    chosen = options.chosen(**model)
    profile = profile_named(profile_name, chosen.base)
    study = TwoHop(chosen.base, profile, (0,), names, Plan())
    scenes = [study.setup(0, dataset, TRIPLE)]
    scenes += [study.setup(number, dataset) for number in training_seeds(setups, "--setups")]
    found = read(
        chosen.load(),
        [scene.composition for scene in scenes],
        [scene.words for scene in scenes],
        scenes[0].task,
        study.plan,
        train=study.size.train,
        test=study.size.test[:asked],
        layers=layers,
        wordings=wordings,
        tick=lambda what: click.echo(what, err=True),
    )
    found.write(out)
    click.echo(f"{out} ({out.stat().st_size / 1e6:.2f} MB)")


@click.command("data-set")
@click.argument("out", type=FOLDER)
@click.option("--dataset", type=click.Choice(["F", "H", "R"]), default="F", show_default=True)
@click.option("--triplets", type=click.IntRange(3, 100_000), default=100, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--bridge", type=click.Choice(["F", "H", "R"]), help="Add a bridge of this dataset.")
@click.option(
    "--share", type=float, default=0.1, show_default=True, help="Triplets held out, of dev and test."
)
@needs_extra("llm")
def export(out: Path, dataset: str, triplets: int, seed: int, bridge: str | None, share: float) -> None:
    """Write a data set as JSON lines, with a manifest.

    OUT is a new folder.
    """
    from llm_experiments.domains.two_hop.export import check_names
    from llm_experiments.domains.two_hop.export import export as write
    from toytransformer.working import working

    check_names(triplets, dataset, seed, bridge)
    size = triplets * (1 if bridge is None else 2)
    manifest = working(
        lambda: write(out, dataset, triplets, seed, bridge_dataset=bridge, share=share),
        f"{size:,} triplets",
        size / TRIPLETS_A_SECOND,
        f"about {size / TRIPLETS_A_SECOND:.0f} s and {size * MEGABYTES_A_TRIPLET:.0f} MB",
    )
    for name, file in manifest["files"].items():
        click.echo(f"{out / name}: {file}")


@click.command()
@click.argument("old", type=FOLDER)
@click.argument("new", type=FOLDER)
@click.option("--world", type=RegularFile(), help="world.json of a base whose facts are known.")
@click.option(
    "--links", type=RegularFile(), help="JSON: the adapters of each cell, where OLD is no run's folder."
)
@needs_extra("llm")
def migrate(old: Path, new: Path, world: Path | None, links: Path | None) -> None:
    """Write rows of earlier code as today's.

    OLD is a NAME.jsonl.gz or a run's folder, NEW a folder to write.
    """
    from llm_experiments.domains.two_hop import migrate as carrying
    from llm_experiments.embedded.corpus import BaseWorld
    from results import files

    linked = None if links is None else _links(links)
    known = None if world is None else BaseWorld.read(world)
    for path in files.write(new, carrying.migrate(old, links=linked, world=known)):
        click.echo(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")


def _links(path: Path) -> dict[str, tuple[str, ...]]:
    """The adapters of each cell, as a JSON object of lists of their addresses."""
    from llm_experiments.models.files import read_json

    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(value, list) for value in content.values()):
        raise click.UsageError(f"--links '{path}' is no JSON object of lists of addresses")
    return {cell: tuple(map(str, adapters)) for cell, adapters in content.items()}


@click.command()
@click.argument("names", nargs=-1)
@click.option("--data", type=FOLDER, default=DATA, help="Where the kept rows are [data/ here].")
@click.option(
    "--world", type=RegularFile(), help="world.json of a base whose facts are known [the embedded model's]."
)
@needs_extra("llm")
def rescore(names: tuple[str, ...], data: Path, world: Path | None) -> None:
    """Read kept answers anew.

    NAMES are folders of kept rows, all of them unless some are given. Texts stay; answers, outcomes and marks
    are what today's scorer says, and the old answer is what the base says to that very item.
    """
    from llm_experiments.domains.two_hop import rescore as reading
    from llm_experiments.embedded.corpus import BaseWorld
    from llm_experiments.models.sources import EMBEDDED
    from results import files
    from toytransformer.cost import in_words
    from toytransformer.working import working

    known = BaseWorld.read(world or EMBEDDED / "world.json")
    folders = [data / name for name in names] or files.folders_of_rows(data)
    for folder in folders:
        kept = files.read(folder)
        seconds = len(kept.rows) / ANSWERS_A_SECOND
        scored = working(partial(reading.rescored, kept, known), folder.name, seconds, in_words(seconds))
        files.write(folder, scored)
        click.echo(folder.relative_to(data).as_posix())


COMMANDS: tuple[click.Command, ...] = (features, migrate, rescore)
#: Of the command `export`, the first one without its name.
EXPORTS: tuple[click.Command, ...] = (export,)
