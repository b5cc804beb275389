"""The doctor: `diagnose` says how adapters lie to one another, and what their merges would do."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from llm_experiments.commands import options
from llm_experiments.commands.options import FOLDER
from toytransformer.command_line import RegularFile, needs_extra


@click.command()
@options.adapters_argument
@partial(options.model_options, model=None)
@click.option(
    "--ask", type=RegularFile(), help="Questions, JSON lines: question, answer [adapter, group, steps]."
)
@click.option(
    "--right",
    type=click.Choice(["exact", "begins", "probable"]),
    default="exact",
    show_default=True,
    help="An answer is right if written to the letter, if written first, if it has half the probability.",
)
@click.option("--html", type=FOLDER, help="Write one self-contained page to FILE.")
@click.option("--json", "json_file", type=FOLDER, help="Write everything to FILE; - is the terminal.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Questions at once.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of samples, masks and gauges.")
@needs_extra("llm")
def diagnose(
    adapters: tuple[str, ...],
    ask: Path | None,
    right: str,
    html: Path | None,
    json_file: Path | None,
    batch: int,
    seed: int,
    **model: Any,
) -> int:
    """Say whether adapters can be combined, and how.

    From their weights alone: sizes, angles, shared spaces, duplicates and opposites, what each static rule
    keeps of each adapter, where their weight is. With --model: how far each moves neutral prompts, and
    Arrow's weights. With --ask: the base, each adapter alone at several weights, every merge predicted from
    these, the best few measured, and a verdict. Exit status 1 if something speaks against merging them.
    """
    import sys

    from rich.console import Console

    from llm_experiments.adapters.compatible import compatibility, of_one_base
    from llm_experiments.adapters.of_base import opened_library
    from llm_experiments.adapters.peft_files import distinctly_named, opened
    from llm_experiments.diagnose import asked_tables, page, tables
    from llm_experiments.diagnose.combining import combine
    from llm_experiments.diagnose.findings import findings
    from llm_experiments.diagnose.leaks import leaks
    from llm_experiments.diagnose.library import measure
    from llm_experiments.diagnose.staged import asked_in_stages
    from llm_experiments.diagnose.verdict import SEPARATE, verdict
    from llm_experiments.domains.own.questions import read
    from llm_experiments.models.shapes import base_shapes
    from toytransformer.compositions import replace_file
    from toytransformer.compositions.io import require_writable
    from toytransformer.working import Bar

    if ask and model["model"] is None:
        raise click.UsageError("--ask needs --model: which one are the questions put to?")
    to_terminal = json_file is not None and str(json_file) == "-"
    for file in (html, None if to_terminal else json_file):
        if file:
            require_writable(file)
    if model["model"] is None:
        base, named = None, distinctly_named([opened(source) for source in adapters], adapters)
    else:
        base = base_shapes(model["model"], revision=model["revision"])
        named = opened_library(adapters, base)
    library, apart = of_one_base(named, base)
    asking = read(ask, [adapter.name for adapter in named]) if ask else []
    questions = [one for one in asking if one.adapter not in apart]
    loaded = options.chosen(**model).load() if model["model"] is not None else None
    with Bar(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
        task = bar.add_task("modules", total=None)
        geometry = measure(
            library, seed=seed, tick=lambda done, every: bar.update(task, completed=done, total=every)
        )
        asked = moved = said = None
        if loaded is not None:
            if questions:
                task = bar.add_task("asking", total=None)
                tick = partial(bar.update, task)
                asked = combine(
                    loaded,
                    library,
                    questions,
                    geometry,
                    reading=right,
                    batch=batch,
                    tick=lambda what: tick(description=tables.plain(what)),
                )
            moved = leaks(loaded, library, questions, asked.owners if asked else ())
            staged = None
            if asked and (best := next(iter(asked.measured), None)):
                staged = asked_in_stages(
                    loaded, library, questions, best.name, best.merge, reading=right, batch=batch
                )
            said = verdict(asked, moved, staged) if asked else None
    found = findings(geometry, apart, compatibility(library).notes)
    diagnosis = page.Diagnosis(geometry, found, moved, asked, said)
    told = tables.to_dict(geometry, diagnosis.findings)
    if moved is not None:
        told |= asked_tables.to_dict(asked, moved, said)
    text = json.dumps(told, indent=1, allow_nan=False) + "\n"
    if json_file and not to_terminal:
        replace_file(json_file, [text])
    if html:
        replace_file(html, [page.render(diagnosis)])
    if to_terminal:
        click.echo(text, nl=False)
    else:
        console = Console(highlight=False)
        tables.show(console, geometry, diagnosis.findings)
        if moved is not None:
            asked_tables.show(console, geometry.names, asked, moved, said)
    against = any(finding.against for finding in diagnosis.findings)
    return int(against or (said is not None and said.decision == SEPARATE))
