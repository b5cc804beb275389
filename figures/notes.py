"""How cells are named in drawings, and the note under each: models, questions, seeds, intervals."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from results.cells import OWN_TASK, Cell

#: Inches that a character of 8 pt takes on average, a little less than it may.
CHARACTER = 0.059

#: Facts by whether they overwrite answers that the base was taught. It has an answer to fresh ones too.
FACTS = {True: "Known facts: the base knew others", False: "Fresh facts: new to the base"}
INTERVALS = "Bars: 95% Wilson intervals over the questions of one seed"


def seeds(given: Iterable[Cell]) -> str:
    """The training seeds, "seed 0" or "seeds 0–2"; the base model has none."""
    trained = sorted({seed for cell in given for seed in cell.seeds if seed is not None})
    if len(trained) < 2:
        return f"seed\xa0{trained[0]}" if trained else "no training"
    return f"seeds\xa0{numbers(trained)}"


def numbers(several: Sequence[int]) -> str:
    """0–7 for a run of three and more, else by comma."""
    run = len(several) > 2 and list(several) == list(range(several[0], several[-1] + 1))
    return f"{several[0]}–{several[-1]}" if run else ", ".join(map(str, several))


def measured(given: Sequence[Cell]) -> str:
    """Each model with its numbers of questions and its seeds: "embedded: n = 40 (20 chains), seeds 0–2"."""
    texts = []
    for model in models(given):
        own = [cell for cell in given if cell.info.base == model]
        sizes = sorted({(cell.items, cell.clusters) for cell in own})
        what = "chains" if all(cell.info.spec_hash for cell in own) else "clusters"
        counts = " or ".join(f"{items} ({clusters} {what})" for items, clusters in sizes)
        names = max(len(cell.names) for cell in own)
        drawn = f", {names} draws of names" if names > 1 else ""
        texts.append(f"{model}: n\xa0=\xa0{counts}{drawn}, {seeds(own)}")
    return "; ".join(texts)


def regime(given: Iterable[Cell]) -> str:
    """Where the toy's numbers come from: the full limit, and what was drawn where it leaves them open."""
    toys = [cell.prediction for cell in given if cell.prediction]
    text = "Toy: full limit, n facts as measured"
    drawn = sorted({(toy["draws"], toy["regime"]["dimension"]) for toy in toys if toy["tied"]})
    if drawn:
        draws, dimension = drawn[0]
        text += (
            f"; where tied singular values leave it open, mean of {draws} draws at d\xa0=\xa0{dimension:,}"
        )
    return text


def models(given: Iterable[Cell]) -> list[str]:
    """The models, those with most cells first."""
    return [model for model, _ in Counter(cell.info.base for cell in given).most_common()]


def known(cell: Cell) -> bool:
    """Whether the base knew other answers to the tested facts; to fresh ones too it says something."""
    return bool(cell.info.setting.get("known"))


def question_label(name: str) -> str:
    """A group and how it was asked ("sums/steps") in words."""
    group, _, how = name.partition("/")
    return f"{group}, step by step" if how == "steps" else group


def undertrained(given: Iterable[Cell], mark: str = "Ringed") -> tuple[str, ...]:
    """What the mark says of cells whose adapters had not learned their own task, where there are any."""
    return (
        (f"{mark}: an adapter is under {OWN_TASK:.0%} right on its own task, alone",)
        if any(cell.undertrained for cell in given)
        else ()
    )


def wrapped(width: float, *sentences: str) -> str:
    """The sentences as lines of 8 pt that fit into `width` inches."""
    return "\n".join(textwrap.wrap(". ".join(sentences) + ".", int(width / CHARACTER)))
