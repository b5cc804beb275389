"""By likeness of what an adapter was trained on, as a text, to the target task."""

from __future__ import annotations

from llm_experiments.pools.selectors import Scores, Selection, selector
from toytransformer.merging import RuleError


@selector("text")
def text(job: Selection) -> Scores:
    """Cosine of encoded descriptions; refused, as no encoder of texts is kept with this project.

    Errors: RuleError.
    """
    raise RuleError(
        "selector 'text' needs an encoder of texts, and none is kept here: use 'cosine' with an adapter of "
        "the target, or 'loss' with examples"
    )
