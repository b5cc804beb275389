"""Command line: `python -m benchmarks [NAME]... [--small] [--json FILE]`."""

from __future__ import annotations

from toytransformer import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import json
import math
import os
import sys
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.case import NOTHING, Case, Side
from benchmarks.cases import cases
from benchmarks.measure import Measurement, measure
from toytransformer.command_line import run as run_command
from toytransformer.compositions.io import PACKAGES, provenance, read_plain, replace_file
from toytransformer.working import Bar

CODE = tuple(Path(__file__).parents[1] / name for name in ("toytransformer", "llm_experiments", "benchmarks"))
THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
NAMES = tuple(dict.fromkeys(case.name for case in cases()))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(NAMES), metavar="[NAME]...")
@click.option("--small", is_flag=True, help="Sizes that take a moment; the targets then mean nothing.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the rows and their provenance to FILE; of some cases, into the rows that it holds.",
)
def main(names: tuple[str, ...], small: bool, json_file: Path | None) -> None:
    """Time our routes against named others in the same run.

    Of toytransformer, against plain NumPy: coefficients, memory, draws, dense, symmetry. Of llm_experiments:
    arrow (prototypes against PEFT's), merging (merged adapters against PEFT's), together (training against
    Trainer on PEFT's layers), answers (against plain generate).

    Every route runs in a process of its own, on the CPU, with one thread of BLAS unless the environment says
    otherwise. Exit status 1 if two routes disagree.
    """
    if json_file and not json_file.resolve().parent.is_dir():
        raise click.BadParameter(f"{json_file.parent} is not a folder", param_hint="--json")
    os.environ["JAX_PLATFORMS"] = "cpu"
    for name in THREADS:  # of either side's linear algebra; on a busy machine more would wait for each other
        os.environ.setdefault(name, "1")
    chosen = [case for case in cases(small) if not names or case.name in names]
    console, rows = Console(), []
    done: dict[Side, Measurement] = {}
    with Bar(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), transient=True) as bar:
        for case in chosen:
            bar.add_task(f"{case.name}: {case.about}")
            ours, plain = run(case.ours, done), run(case.plain, done)
            assert ours is not None, f"our side of {case.name} is always run"
            rows.append(row(case, ours, plain, small))
            bar.remove_task(bar.task_ids[-1])
    console.print(table(rows))
    for number, shown in enumerate(rows, start=1):
        console.print(f"{number} {shown['case']}: {shown['about']}", highlight=False)
    if json_file:
        report = {
            "provenance": provenance(CODE, (*PACKAGES, "torch", "transformers", "peft")),
            "processors": os.cpu_count(),
            "threads": {name: os.environ[name] for name in THREADS},
            "small": small,
            "rows": rows,
        }
        if names and json_file.is_file():
            report = joined(json.loads(read_plain(json_file)), report)
        replace_file(json_file, [json.dumps(report, indent=1, allow_nan=False) + "\n"])
    sys.exit(any(row["agrees"] is False for row in rows))


def joined(kept: dict, new: dict) -> dict:
    """The kept report with these cases' rows in it, in the order of all cases.

    Such rows say where they come from, as they were not measured in the kept run. Errors: UsageError where
    the sizes differ.
    """
    if kept["small"] != new["small"]:
        raise click.UsageError("the file holds rows of another size: name a new one, or all cases")
    rows = {name: [row for row in kept["rows"] if row["case"] == name] for name in NAMES}
    anew = [row | {"provenance": new["provenance"]} for row in new["rows"]]
    rows |= {name: several for name in NAMES if (several := [row for row in anew if row["case"] == name])}
    return kept | {"rows": [row for several in rows.values() for row in several]}


def run(side: Side, done: dict[Side, Measurement]) -> Measurement | None:
    """Measure a side, once for all the cases that share it; None where it is not run."""
    if side.prepare is None:
        return None
    if side not in done:
        done[side] = measure(side.prepare, *side.arguments, repeats=side.repeats)
    return done[side]


def row(case: Case, ours: Measurement, plain: Measurement | None, small: bool) -> dict:
    """One row as plain data: both sides, their ratio, the target and whether it is met, and the agreement."""
    apart, allowed = map(float, case.difference(ours.value, NOTHING if plain is None else plain.value))
    ratio = plain.median / case.plain.share / ours.median if plain else None
    targets = {
        "ratio >= {:g}x": (case.ratio, ratio is not None and case.ratio is not None and ratio >= case.ratio),
        "<= {:g} s": (case.seconds, case.seconds is not None and ours.median <= case.seconds),
        "<= {:g} bytes": (case.peak, case.peak is not None and ours.peak <= case.peak),
    }
    given = {words.format(size): met for words, (size, met) in targets.items() if size is not None}
    return {
        "case": case.name,
        "about": case.about,
        "ours": ours.to_dict(),
        "plain": plain.to_dict() | {"share_of_case": case.plain.share} if plain else case.plain.instead,
        "ratio": ratio,
        "target": ", ".join(given) or None,
        "met": None if small or not given else all(given.values()),
        "difference": None if math.isnan(allowed) else apart,
        "tolerance": None if math.isnan(allowed) else allowed,
        "agrees": None if math.isnan(allowed) else bool(apart <= allowed),
    }


def table(rows: list[dict]) -> Table:
    """The rows for a terminal: medians of repeated calls, the first call's extra, peak memory."""
    shown = Table(
        title="ours against the plain route: median seconds of a call (+ the first call's extra, "
        "mostly compilation); peak memory of each process, in GB",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    shown.add_column("case", no_wrap=True)
    for name in ("ours", "plain", "ratio", "target", "apart / allowed", "memory"):
        shown.add_column(name, justify="right")
    for number, row in enumerate(rows, start=1):
        ours, plain = row["ours"], row["plain"]
        ran = isinstance(plain, dict)
        met = {None: "", True: "\n[green]met[/]", False: "\n[red]missed[/]"}[row["met"]]
        agrees = {None: "", True: "\n[green]agree[/]", False: "\n[red]DISAGREE[/]"}[row["agrees"]]
        shown.add_row(
            f"[bold]{number} {row['case']}[/]",
            f"{ours['median_s']:.2g}\n(+{max(0.0, ours['first_s'] - ours['median_s']):.1g})",
            f"{plain['median_s'] / plain['share_of_case']:.2g}" if ran else plain,
            f"{row['ratio']:,.{0 if row['ratio'] >= 100 else 1}f}x" if ran else "",
            (row["target"] or "").removeprefix("ratio ") + met,
            (f"{row['difference']:.1g} / {row['tolerance']:.1g}" if row["agrees"] is not None else "")
            + agrees,
            f"{ours['peak_bytes'] / 1e9:.2f}" + (f"\nplain {plain['peak_bytes'] / 1e9:.2f}" if ran else ""),
        )
    return shown


if __name__ == "__main__":
    run_command(main, "python -m benchmarks")
