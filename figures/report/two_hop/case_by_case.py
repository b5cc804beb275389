"""What the rows of the outcome map say, in words: no answer is named that the rows do not hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from figures.store import Row

SAYS = {
    "correct": "the right answer",
    "bridge": "the bridge entity",
    "old": "the old answer",
    "edited": "the answer to another edited fact",
    "other": "something else",
}


def summary(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """What a model answers to a two-hop question after its adapters are merged: by training, then by case.

    rows: those of the part "outcomes". A case that has no rows is left out, and a heading without cases.
    """
    pair = _of(rows, group="pair")
    fitted, mixed = _of(rows, group="fitted"), _of(rows, composition="mixed")
    alone, merged = _of(rows, composition="oracle-only"), _of(rows, composition="with-oracle")
    hop2 = _of(rows, composition="hop2-only", known=False, facts=1)
    fresh = _of(pair, known=False)
    by_training = {
        f"Two adapters, one for each hop, merged by any of {len({row['rule'] for row in pair})} rules": {
            "Known facts": _of(pair, known=True),
            "Fresh facts, several in each adapter": [row for row in fresh if row["facts"] > 1],
            "Fresh facts, one in each": _of(fresh, facts=1),
            "The second of them alone, one fresh fact": hop2,
        },
        "The same with rules that are fitted to two-hop examples of other entities": {
            "Known facts": _of(fitted, known=True),
            "Fresh facts": _of(fitted, known=False),
        },
        "One adapter trained on both hops, but not on the two-hop questions": {
            "Known facts": _of(mixed, known=True),
            "Fresh facts": _of(mixed, known=False),
        },
        "An adapter trained on the two-hop questions that are asked": {
            "Alone": alone,
            "Merged with the other two, known facts": _of(merged, known=True),
            "Merged with the other two, fresh facts": _of(merged, known=False),
        },
    }
    texts = {
        heading: {case: answers(chosen) for case, chosen in cases.items() if chosen}
        for heading, cases in by_training.items()
    }
    return {heading: cases for heading, cases in texts.items() if cases}


def answers(rows: Sequence[Row]) -> str:
    """Which answers are given over the rows, from the most to the least frequent."""
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update(row["shares"])
    first, *others = (SAYS[outcome] for outcome, share in totals.most_common() if share)
    return f"most often {first}, else {' or '.join(others)}" if others else f"always {first}"


def _of(rows: Sequence[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]
