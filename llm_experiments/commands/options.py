"""Options that several commands have, and what they choose: a model, training seeds, a profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from llm_experiments.experiments.sizes import Profile
    from llm_experiments.experiments.study import Base
    from llm_experiments.models.handle import LoadedModel

FOLDER = click.Path(path_type=Path)
#: The kept rows, beside the code.
DATA = Path(__file__).parents[1] / "data"


def _listed(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """The adapters named, those of a list in place of @FILE."""
    from llm_experiments.adapters.lists import listed

    several = [listed(Path(one[1:])) if one.startswith("@") else [one] for one in given]
    return tuple(source for one in several for source in one)


#: Adapters by name: what each may be, `check --help` says; @FILE is a list, one a line.
adapters_argument = click.argument("adapters", nargs=-1, required=True, callback=_listed)


def model_options(command: Callable, *, model: str | None = "embedded") -> Callable:
    """The options that say which model is used, and how. model: the default, None for none."""
    for option in reversed(
        (
            click.option(
                "--model",
                default=model,
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
    from llm_experiments.experiments.study import Base
    from llm_experiments.models import devices, sources
    from llm_experiments.models.load import load as load_model

    gpus = devices.gpus_for(device, devices.free_memory())
    if dtype == "auto":
        dtype = str(devices.automatic_dtype(gpus)).removeprefix("torch.")
    source = sources.find(model, revision=revision)
    sources.require_tokenizer(source)
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
        return load_model(model, dtype=dtype, device=device, four_bit=four_bit, revision=revision)

    return Chosen(base, load)


def training_seeds(text: str, option: str = "--seeds") -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"{option} is {text!r}: give whole numbers by comma, such as 0,1,2") from None


def profile_named(name: str | None, base: Base) -> Profile:
    """The profile of that name; without one "embedded" where the base's world is known, else "paper"."""
    from llm_experiments.experiments.sizes import PROFILES

    if name is None:
        name = "paper" if base.world is None else "embedded"
    if name not in PROFILES:
        raise click.UsageError(f"there is no profile {name!r}: choose {', '.join(PROFILES)}")
    return PROFILES[name]
