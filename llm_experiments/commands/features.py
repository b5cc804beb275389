"""What the measured kernel needs of a base model: its `features` on a composition's prompts, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llm_experiments.commands import options
from llm_experiments.commands.options import FOLDER, profile_named, training_seeds
from toytransformer.command_line import needs_extra


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
