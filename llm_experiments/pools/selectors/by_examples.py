"""By what each adapter alone does on the examples: one pass of the model over them for every adapter."""

from __future__ import annotations

from llm_experiments.diagnose.answers import AnswerSheet
from llm_experiments.merges.merging import apply
from llm_experiments.pools.selectors import Scores, Selection, selector
from toytransformer.compositions.spec import Merge

NEEDED = ("model", "examples")


@selector("loss", needs=NEEDED)
def loss(job: Selection) -> Scores:
    """Mean log p of an example's answer under the base with the adapter, in nats."""
    return [logprob for logprob, _ in _alone(job)]


@selector("accuracy", needs=NEEDED)
def accuracy(job: Selection) -> Scores:
    """Share of examples whose answer greedy decoding writes to the letter.

    "Evaluation" of arXiv 2602.12323, its selector. Few examples leave many ties, which the loss decides: a
    share counts in steps of 1 / examples, and 1 / (1 + loss) <= 1 is divided by twice their number.
    """
    return [right + 1 / (1 - logprob) / (2 * len(job.examples)) for logprob, right in _alone(job)]


def _alone(job: Selection) -> list[tuple[float, float]]:
    """Mean log p and share of right answers, by adapter."""
    assert job.model is not None  # as `select` made sure
    sheet = AnswerSheet.of(job.model, job.examples)
    found = []
    for adapter in job.adapters():
        with apply(job.model, [adapter], Merge("sum")):
            scores = sheet.scores(sheet.logits(job.model, batch=job.batch))
        found.append((-scores.loss, scores.share))
    return found
