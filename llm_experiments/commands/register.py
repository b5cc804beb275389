"""Predictions of what an experiment will measure, kept before it does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from llm_experiments.commands import options
from llm_experiments.commands.options import FOLDER, profile_named, training_seeds
from toytransformer.command_line import needs_extra


@click.command()
@click.argument("experiments", nargs=-1, required=True, metavar="EXPERIMENT..")
@options.model_options
@click.option("--names", "draws", default="0", show_default=True, help="Draws of names, by comma.")
@click.option("--profile", "profile_name", help="Size of the measurement (see `experiments`).")
@click.option("--tiers", default="T0,T1,T2", show_default=True, help="Predictors, by comma.")
@click.option("--kept", type=FOLDER, help="Folder of the base's rows and features [the one beside the code].")
@click.option("--out", type=FOLDER, help="Predictions to read and add to [those committed].")
@needs_extra("llm")
def register(
    experiments: tuple[str, ...],
    draws: str,
    profile_name: str | None,
    tiers: str,
    kept: Path | None,
    out: Path | None,
    **model: Any,
) -> None:
    """Keep what is predicted of an experiment, before it runs.

    Nothing is trained or asked. Merges that are measured already are left out, and a prediction that is there
    is not replaced. Commit the file, then measure.
    """
    import jax

    import predictors
    from llm_experiments.engine.addresses import Ref
    from llm_experiments.experiments.registry import EXPERIMENTS
    from llm_experiments.pages import DATA
    from llm_experiments.steps.asking import Ask
    from predictors import registered
    from predictors.registry import BaseModel
    from predictors.tiers import alone, read, write
    from results import files, frame
    from toytransformer.compositions import Composition, provenance

    base = options.chosen(**model).base
    folder = kept or DATA / base.id
    rows = frame.read(folder) if files.is_folder_of_rows(folder) else None
    there = rows.cells.values() if rows else ()
    measured = {(c.spec_hash, c.digest, c.dataset, c.names) for c in there if len(c.library) > 1}
    code = provenance([Path(predictors.__file__).parent])
    if code["modified"] is not False:
        raise click.ClickException("the predictors differ from what is committed: commit them first")
    planned: dict[registered.Place, registered.Planned] = {}
    bases: dict[tuple[str, int], BaseModel | None] = {}
    for name in experiments:
        if name not in EXPERIMENTS:
            raise click.UsageError(f"there is no experiment {name!r}: see `experiments`")
        profile = profile_named(profile_name, base)
        plan = EXPERIMENTS[name].plan(base, profile, (0,), training_seeds(draws, "--names"))
        for step in plan.steps.values():
            if not isinstance(step, Ask) or len(step.library) < 2 or step.control or step.variant:
                continue
            about = step.about
            if about.spec_hash is None or about.dataset is None or about.names is None:
                continue
            place = (about.dataset, about.names)
            if place not in bases:
                read_off = BaseModel.read((folder, DATA / base.id), *place)
                bases[place] = read_off and replace(read_off, alone=alone(rows, *place) if rows else None)
            found = bases[place]
            if found is not None and found.features.about["digest"] != base.digest:
                found = None
            spec = Composition.from_json(plan.spec(Ref(about.spec_hash)))
            one = registered.Planned(spec, base.id, base.digest, *place, found)
            planned[one.place] = one
    new = [one for place, one in planned.items() if place not in measured]
    path = out or registered.REGISTERED
    lines = read(path)
    with jax.enable_x64(True):
        after = registered.register(new, lines, tiers.split(","), str(code["git"]))
    write(path, after)
    click.echo(
        f"{path}: {len(after) - len(lines)} predictions of {len(new)} compositions added; "
        f"{len(planned) - len(new)} are measured already"
    )
