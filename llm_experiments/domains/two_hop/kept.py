"""The scorer of measured rows, made again from what is kept of them: their composition and draw of names."""

from __future__ import annotations

from llm_experiments.domains.two_hop import scorer
from llm_experiments.domains.two_hop.known import KnownFacts
from llm_experiments.domains.two_hop.lexicon import Lexicon, lexicon
from llm_experiments.domains.two_hop.rendering import in_context
from llm_experiments.domains.two_hop.task import item
from results.rows import CellInfo, Item, RowsError
from toytransformer.compositions import Composition, Question


def words_of(info: CellInfo, composition: Composition, world: KnownFacts | None) -> Lexicon:
    """The names that a cell was asked with: its bridge has the other kind, invented beside real ones, unless
    its variant says that they are of the tested kind."""
    dataset, bridge = str(info.dataset), None
    if composition.name.startswith("setup-"):
        other = "F" if dataset == "R" else "R"
        bridge = dataset if info.variant.get("bridge_names") == "real" else other
    return lexicon(
        composition, dataset=dataset, seed=info.names or 0, bridge_dataset=bridge, base_world=world
    )


class Kept:
    """The items and the scorer of a cell. world: what the base is known to know.

    Errors: RowsError where the names drawn now are not those the items were asked with.
    """

    def __init__(self, info: CellInfo, composition: Composition, world: KnownFacts | None):
        self.composition = composition
        self.words = words_of(info, composition, world)
        self.scorer = scorer.Entities(scorer.context(composition, self.words))
        self._questions: dict[tuple[str, str], Question] = {
            (str(q.prompt), q.decode): q for q in composition.questions
        }

    def item(self, kept: Item) -> Item:
        """The item as it would be asked today, with the roles of its composition alone."""
        question = self._questions.get((str(kept.extra["prompt"]), kept.ask))
        if question is None:
            raise RowsError(f"'{kept.id}' is not asked in {self.composition.name}")
        template = kept.extra["template"]
        assert isinstance(template, int)
        now = item(self.composition, question, self.words, template)
        if "context" in kept.extra:
            now = in_context(now, self.composition, self.words)
        if (now.id, now.question, now.target) != (kept.id, kept.question, kept.target):
            raise RowsError(
                f"'{kept.id}' of {self.composition.name} was asked as {kept.question!r}, and would be as "
                f"{now.question!r}: it was measured with other names or templates"
            )
        return now
