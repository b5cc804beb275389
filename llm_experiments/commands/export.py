"""What is asked, as files: a data set, or questions for other harnesses (`export lm-eval FOLDER`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llm_experiments.commands import of_domains, options
from llm_experiments.commands.options import FOLDER, profile_named
from toytransformer.command_line import needs_extra

#: Experiments whose questions need no data set.
ASKED = ("quick", "math-ladder", "code-own", "places-own")


class _Exports(click.Group):
    """The first command is meant where none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


@click.group("export", cls=_Exports)
def export() -> None:
    """Write a data set, or questions for lm-eval and inspect-ai.

    `export FOLDER` is `export data-set FOLDER`.
    """


@click.command("lm-eval")
@click.argument("folder", type=FOLDER)
@click.argument("experiments", nargs=-1)
@options.model_options
@click.option("--profile", "profile_name", help="Size of the experiments (see `list`).")
@needs_extra("llm")
def lm_eval(folder: Path, experiments: tuple[str, ...], profile_name: str | None, **model: Any) -> None:
    """Write what EXPERIMENTS ask as tasks of lm-eval, for its --include_path, and of inspect-ai.

    FOLDER is a new folder. Questions are put, and end, as the chosen model's are.
    """
    from llm_experiments.asking.evaluation import budget
    from llm_experiments.engine.steps import Plan
    from llm_experiments.experiments.registry import EXPERIMENTS
    from llm_experiments.exports import asked

    names = experiments or ASKED
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        raise click.UsageError(f"there is no experiment {unknown[0]!r}: choose {', '.join(EXPERIMENTS)}")
    chosen = options.chosen(**model)
    profile, whole = profile_named(profile_name, chosen.base), Plan()
    for name in dict.fromkeys(names):
        whole.include(EXPERIMENTS[name].plan(chosen.base, profile, (0,)))
    loaded = chosen.load()
    form = None if loaded.form.chat else "Question: {question}\nAnswer:"
    several = asked.sets(whole, form, lambda targets: budget(loaded, targets))
    for path in asked.write(folder, several):
        click.echo(path)


for _command in (*of_domains("EXPORTS"), lm_eval):
    export.add_command(_command)
