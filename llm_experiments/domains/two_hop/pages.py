"""What the project's pages call the cells of the two-hop experiments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from results.cells import Cell
from results.frame import select
from results.pages import Rows
from results.rows import BASE

#: What a page calls a group of questions and the way they are question.
QUESTIONS = {
    "steps": {"group": "two-hop", "ask": "steps"},
    "direct": {"group": "two-hop", "ask": "direct"},
    "hop1": {"group": "hop1", "ask": "direct"},
    "hop2": {"group": "hop2", "ask": "direct"},
}


class TwoHopRows(Rows):
    """The measurements of one model, by setup, rule and question."""

    def cell(
        self,
        number: int | str,
        rule: str,
        question: str = "steps",
        dataset: str = "R",
        library: Iterable[str] | None = ("hop1", "hop2"),
        control: str | None = None,
        weights: Sequence[float] | None = None,
        layers: str = "mlp",
        options: Mapping[str, object] | None = None,
        **variant: object,
    ) -> Cell:
        """The cell of setup `number`, or of a task by name with any library where that is None.

        options: of the rule, None for any. variant: what tells the library or its training from the plain
        one; a cell has none of it unless it is asked for. Errors: ResultsError unless there is exactly one.
        """
        wanted = {
            "task": number if isinstance(number, str) else f"setup-{number}",
            "rule": rule,
            "dataset": dataset,
            **({} if library is None else {"library": tuple(library)}),
            "control": control,
            "weights": None if weights is None else tuple(weights),
            "layers": layers,
            **({} if options is None else {"options": dict(options)}),
            "variant": variant,
        }
        return self.one(**QUESTIONS[question], **wanted)

    def base(self, question: str = "steps", dataset: str = "R") -> Cell:
        """What the base model answers."""
        return self.one(**QUESTIONS[question], control=BASE, task="setup-0", dataset=dataset)

    def alone(self, name: str, question: str = "steps", dataset: str = "R") -> Cell:
        """One adapter of setup 0 on its own."""
        return self.cell(0, "sum", question, dataset, library=(name,), control=name)

    def merged(self, question: str, dataset: str, library: Iterable[str]) -> list[Cell]:
        """Every cell of a setup in which this library is merged, by any rule, training, weights but zero."""
        about = {"dataset": dataset, "library": tuple(library), "control": None}
        cells = select(self.cells, **QUESTIONS[question], **about)
        return [c for c in cells if all(c.info.weights or (1,)) and c.info.task.startswith("setup-")]

    def strangers(
        self, number: int, question: str, options: Mapping[str, object] | None = None
    ) -> list[float]:
        """The mean weight of a hop's own adapter where the answer to strangers' questions of it is written.

        One for each draw of names of setup `number`'s library, in their order.
        """
        cells = select(self.cells, **QUESTIONS[question], rule="arrow-products", options=dict(options or {}))
        found = [c for c in cells if c.info.variant.get("library") == f"setup-{number}"]
        found.sort(key=lambda cell: int(str(cell.info.variant["library_names"])))
        return [cell.gate("answer")[question] for cell in found]
