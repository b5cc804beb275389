"""What merges answer, predicted beside measured, for a terminal and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from llm_experiments.diagnose.answers import READINGS, Scores
from llm_experiments.diagnose.combining import SCALES, Combination, Combinations
from llm_experiments.diagnose.leaks import Leaks
from llm_experiments.diagnose.staged import Staged
from llm_experiments.diagnose.tables import numbers, plain, plain_table
from llm_experiments.diagnose.verdict import Verdict
from results.statistics import wilson

#: Merges that are shown besides those that were measured.
MORE = 4
#: Questions with steps that a terminal shows.
STAGED = 12


def show(
    console: Console,
    names: Sequence[str],
    asked: Combinations | None,
    leaks: Leaks,
    verdict: Verdict | None,
) -> None:
    """Scale curves, merges, leaks, and the verdict."""
    if asked is not None:
        for title, table in (_curves(asked), _merges(asked), *_groups(asked)):
            console.print(f"[bold]{title}[/bold]")
            console.print(table)
    for title, table in _leaks(leaks, names):
        console.print(f"[bold]{title}[/bold]")
        console.print(table)
    if leaks.gates is None:
        console.print(f"Arrow cannot route them: {plain(leaks.reason)}")
    if verdict is not None and verdict.staged is not None:
        for title, table in _staged(verdict.staged):
            console.print(f"[bold]{title}[/bold]")
            console.print(table)
    if verdict is not None:
        console.print(f"[bold]Verdict: {verdict.decision}[/bold]")
        for sentence in verdict.sentences:
            console.print(f"- {plain(sentence.text)}")


def share(scores: Scores) -> str:
    """Share right with Wilson's interval."""
    count = len(scores.right)
    low, high = wilson(int(scores.right.sum()), count)
    return f"{scores.share:.0%} [{low:.0%}, {high:.0%}]"


def _curves(asked: Combinations) -> tuple[str, Table]:
    table = plain_table(("", *(f"{scale:g}" for scale in SCALES)))
    for index, (name, curve) in enumerate(asked.curves.items()):
        own = asked.owned(index)
        if own.any():
            shares = [f"{curve[scale].right.numpy()[own].mean():.0%}" for scale in SCALES]
            table.add_row(f"{plain(name)} ({int(own.sum())} questions)", *shares)
    return "Each adapter alone, right on its own questions, by its weight (0: the base)", table


def shown(asked: Combinations) -> list[Combination]:
    """The merges that were measured, and the best predicted of the others."""
    others = [one for one in asked.merges if one.measured is None]
    return [*asked.measured, *others[:MORE]]


def _merges(asked: Combinations) -> tuple[str, Table]:
    table = plain_table(("merge", "as weights", "own", "predicted right", "measured", "loss", "measured"))
    for one in shown(asked):
        table.add_row(
            one.name,
            ", ".join(f"{weight:.2g}" for weight in one.weights),
            f"{one.own:.0%}",
            f"{one.predicted.share:.0%}",
            "" if one.measured is None else share(one.measured),
            f"{one.predicted.loss:.2f}",
            "" if one.measured is None else f"{one.measured.loss:.2f}",
        )
    title = f"Merges on {len(asked.questions)} questions: share right, and mean -log p of the answers"
    return f"{title}; the base {share(asked.base)}. Right is where {READINGS[asked.reading]}", table


def groups(asked: Combinations) -> list[tuple[str, int, Scores, Scores]]:
    """By group of the questions: its name, their number, the base on them and the best merge measured.

    Empty where the questions are of one group or nothing was measured.
    """
    best, found = next(iter(asked.measured), None), []
    names = list(dict.fromkeys(question.group for question in asked.questions))
    if best is None or best.measured is None or len(names) < 2:
        return []
    for name in names:
        inside = torch.tensor([question.group == name for question in asked.questions])
        parts = [Scores(s.logprob[inside], s.right[inside]) for s in (asked.base, best.measured)]
        found.append((name, int(inside.sum()), parts[0], parts[1]))
    return found


def _groups(asked: Combinations) -> list[tuple[str, Table]]:
    table = plain_table(("group", "questions", "the base", "the best merge"))
    for name, count, base, merged in groups(asked):
        table.add_row(plain(name or "(none)"), str(count), share(base), share(merged))
    return [("By group of questions", table)] if table.row_count else []


def _leaks(leaks: Leaks, names: Sequence[str]) -> list[tuple[str, Table]]:
    several = [("How far each adapter moves the answer's tokens (KL from the base, nats)", leaks.moved)]
    if leaks.gates is not None:
        several.append(("Arrow's weights as they would be, mean over tokens and layers", leaks.gates))
    made = []
    for title, values in several:
        table = plain_table(("on", *map(plain, names)))
        for whose, row in values.items():
            table.add_row(plain(whose), *(f"{value:.3g}" for value in row))
        made.append((title, table))
    return made


def in_stages(staged: Staged) -> list[tuple[str, str, str]]:
    """Of each question with steps: its text, what fails first under the merge, and which steps are lost."""
    found = []
    for place, (question, one) in enumerate(zip(staged.questions, staged.merged, strict=True)):
        lost = [
            f"{number} ({staged.lost(place, number - 1) or 'nobody'} alone)"
            for number, right in enumerate(one.steps, start=1)
            if not right
        ]
        found.append((question.question, one.fails, ", ".join(lost)))
    return found


def _staged(staged: Staged) -> list[tuple[str, Table]]:
    table = plain_table(("question", "fails", "steps that are wrong, and who answers them"))
    for question, fails, lost in in_stages(staged)[:STAGED]:
        table.add_row(plain(question), fails, plain(lost))
    count = len(staged.questions)
    first = f", the first {STAGED} of {count}" if count > STAGED else ""
    return [(f"Questions in steps under {plain(staged.merge)}{first}", table)]


def to_dict(asked: Combinations | None, leaks: Leaks, verdict: Verdict | None) -> dict[str, object]:
    """Everything as JSON has it."""
    told: dict[str, object] = {
        "leaks": {"kl": {name: list(row) for name, row in leaks.moved.items()}},
        "gates": None if leaks.gates is None else {name: list(row) for name, row in leaks.gates.items()},
    }
    if asked is not None:
        told["base"] = _scores(asked.base)
        told["owners"] = [None if owner is None else asked.names[owner] for owner in asked.owners]
        told["curves"] = {
            name: {f"{scale:g}": _scores(scores) for scale, scores in curve.items()}
            for name, curve in asked.curves.items()
        }
        told["merges"] = [
            {
                "name": one.name,
                "rule": one.merge.rule,
                "weights": list(one.weights),
                "own": numbers(one.own),
                "predicted": _scores(one.predicted),
                "measured": None if one.measured is None else _scores(one.measured),
            }
            for one in asked.merges
        ]
    if verdict is not None:
        told["verdict"] = {
            "decision": verdict.decision,
            "merge": None if verdict.merge is None else verdict.merge.name,
            "sentences": [sentence.to_dict() for sentence in verdict.sentences],
        }
        if verdict.staged is not None:
            told["in_steps"] = [
                {"question": question, "fails": fails, "right": {w: asdict(r[i]) for w, r in by.items()}}
                for by in [verdict.staged.right]
                for i, (question, fails, _) in enumerate(in_stages(verdict.staged))
            ]
    return told


def _scores(scores: Scores) -> dict[str, object]:
    return {
        "right": [bool(value) for value in scores.right],
        "logprob": numbers(np.round(scores.logprob.numpy(), 4)),
    }
