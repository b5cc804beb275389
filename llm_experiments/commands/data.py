"""What measurements start from: a data set as files (`export`), a base model from nothing (`pretrain`)."""

from __future__ import annotations

from pathlib import Path

import click

from llm_experiments.commands.options import FOLDER
from toytransformer.command_line import needs_extra


@click.command()
@click.option(
    "--out",
    type=FOLDER,
    default=Path("out") / "embedded",
    show_default=True,
    help="New folder for the model.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--chains/--no-chains", default=True, show_default=True, help="Show chains of thought.")
@needs_extra("llm")
def pretrain(out: Path, seed: int, chains: bool) -> None:
    """Train a model like the embedded one, from nothing.

    It learns a synthetic world. Use it by --model FOLDER.
    """
    from llm_experiments.embedded.pretrain import main as train_embedded

    click.echo(f"{train_embedded(out, seed=seed, chains=chains)}")


#: Of `export`, on one core: what it says before it begins.
TRIPLETS_A_SECOND, MEGABYTES_A_TRIPLET = 90, 0.17


@click.command()
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
