"""What a model gives the right answers, token by token: logits at every place of an answer.

What counts as right is one of READINGS:

    exact      the answer's tokens have the largest logit at each place, its end included: greedy decoding
               writes that answer and nothing else
    begins     the same without the end: greedy decoding writes the answer first, whatever comes behind it
    probable   the answer has at least half of the probability, so that no other text has more
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from llm_experiments.asking.decoding import quiet
from llm_experiments.merges.loss import Tokens, encoded
from llm_experiments.models.handle import LoadedModel
from llm_experiments.models.prompts import Example, silent_targets

EXACT, BEGINS, PROBABLE = "exact", "begins", "probable"
#: An answer is right where ..
READINGS = {
    EXACT: "greedy decoding writes it to the letter",
    BEGINS: "greedy decoding writes it first, whatever comes behind it",
    PROBABLE: "it has at least half of the probability",
}


@dataclass(frozen=True)
class Scores:
    """Of every question, log p of its answer in nats, and whether it is right."""

    logprob: torch.Tensor
    right: torch.Tensor

    def among(self, inside: torch.Tensor) -> Scores:
        """These, of the questions of a mask, among all: NaN and not right elsewhere."""
        logprob = torch.full(inside.shape, math.nan, dtype=self.logprob.dtype)
        right = torch.zeros(inside.shape, dtype=torch.bool)
        logprob[inside], right[inside] = self.logprob, self.right
        return Scores(logprob, right)

    @property
    def share(self) -> float:
        """The share of questions that are right."""
        return float(self.right.double().mean())

    @property
    def loss(self) -> float:
        """Mean -log p of an answer, in nats."""
        return -float(self.logprob.mean())


@dataclass(frozen=True)
class AnswerSheet:
    """The tokens of questions and answers.

    owner: (position,) the question that each place of an answer belongs to. targets: (position,) the token
    that is right there. first: (question,) the position of each answer's first token. reading: what counts as
    right. counted: (position,) which places have to be right for it, None for all.
    """

    rows: tuple[Tokens, ...]
    owner: torch.Tensor
    targets: torch.Tensor
    first: torch.Tensor
    reading: str = EXACT
    counted: torch.Tensor | None = None

    @classmethod
    def of(cls, loaded: LoadedModel, questions: Sequence[Example], reading: str = EXACT) -> AnswerSheet:
        """Errors: ValueError on a reading that is none, ModelError where a tokenizer does not serve it."""
        if reading not in READINGS:
            raise ValueError(f"reading {reading!r} is unknown: use one of {', '.join(READINGS)}")
        rows = tuple(encoded(loaded, question) for question in questions)
        owner = [index for index, (_, answer) in enumerate(rows) for _ in answer]
        counts = torch.tensor([0, *(len(answer) for _, answer in rows)])
        counted = None
        if reading == BEGINS:
            answers = [one.answer for one in questions]
            held = [silent_targets(loaded, text, [(0, len(text))]) for text in answers]
            counted = torch.tensor([inside for one in held for inside in one])
        return cls(
            rows,
            torch.tensor(owner),
            torch.tensor([token for _, answer in rows for token in answer]),
            counts.cumsum(0)[:-1],
            reading,
            counted,
        )

    def only(self, inside: torch.Tensor) -> AnswerSheet:
        """The questions of a mask."""
        places = inside[self.owner]
        owner = (inside.cumsum(0) - 1)[self.owner[places]]
        return replace(
            self,
            rows=tuple(row for row, kept in zip(self.rows, inside.tolist(), strict=True) if kept),
            owner=owner,
            targets=self.targets[places],
            first=torch.searchsorted(owner, torch.arange(int(inside.sum()))),
            counted=None if self.counted is None else self.counted[places],
        )

    def logits(self, loaded: LoadedModel, *, batch: int = 16) -> torch.Tensor:
        """The model's logits before each token of the answers, (position, token), float32 on the CPU.

        batch: questions run at once.
        """
        found = []
        with quiet(loaded.model):
            for start in range(0, len(self.rows), batch):
                rows = self.rows[start : start + batch]
                length = max(len(prompt) + len(answer) for prompt, answer in rows)
                ids = torch.zeros(len(rows), length, dtype=torch.long)
                mask = torch.zeros_like(ids)
                for row, (prompt, answer) in enumerate(rows):
                    tokens = torch.tensor([*prompt, *answer])
                    ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
                kept = length - min(len(prompt) for prompt, _ in rows) + 1
                logits = loaded.model(
                    input_ids=ids.to(loaded.device),
                    attention_mask=mask.to(loaded.device),
                    use_cache=False,
                    logits_to_keep=kept,
                ).logits.to("cpu", torch.float32)
                for row, (prompt, answer) in enumerate(rows):
                    end = len(prompt) + len(answer) - 1 - (length - logits.shape[1])
                    found.append(logits[row, end - len(answer) : end])
        return torch.cat(found)

    def scores(self, logits: torch.Tensor) -> Scores:
        """What these logits, (position, token), say of each question."""
        of_target = logits.gather(1, self.targets[:, None])[:, 0] - logits.logsumexp(1)
        logprob = torch.zeros(len(self.rows), dtype=torch.float64)
        logprob.index_add_(0, self.owner, of_target.double())
        if self.reading == PROBABLE:
            return Scores(logprob, logprob >= -math.log(2))
        wrong = logits.argmax(1) != self.targets
        missed = torch.zeros(len(self.rows), dtype=torch.long)
        missed.index_add_(0, self.owner, (wrong if self.counted is None else wrong & self.counted).long())
        return Scores(logprob, missed == 0)
