"""What measurements start from: a base model from nothing (`pretrain`)."""

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
