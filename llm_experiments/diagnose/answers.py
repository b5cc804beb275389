"""What a model gives the right answers, token by token: logits at every place of an answer.

A question counts as right where the answer's tokens have the largest logit at each place, its end included:
then greedy decoding writes that answer and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llm_experiments.asking.decoding import quiet
from llm_experiments.domains.own.questions import Question
from llm_experiments.merges.loss import Tokens, encoded
from llm_experiments.models.handle import LoadedModel


@dataclass(frozen=True)
class Scores:
    """Of every question, log p of its answer in nats, and whether greedy decoding writes it."""

    logprob: torch.Tensor
    right: torch.Tensor

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
    that is right there. first: (question,) the position of each answer's first token.
    """

    rows: tuple[Tokens, ...]
    owner: torch.Tensor
    targets: torch.Tensor
    first: torch.Tensor

    @classmethod
    def of(cls, loaded: LoadedModel, questions: Sequence[Question]) -> AnswerSheet:
        rows = tuple(encoded(loaded, question) for question in questions)
        owner = [index for index, (_, answer) in enumerate(rows) for _ in answer]
        counts = torch.tensor([0, *(len(answer) for _, answer in rows)])
        return cls(
            rows,
            torch.tensor(owner),
            torch.tensor([token for _, answer in rows for token in answer]),
            counts.cumsum(0)[:-1],
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
        missed = torch.zeros(len(self.rows), dtype=torch.long)
        missed.index_add_(0, self.owner, (logits.argmax(1) != self.targets).long())
        return Scores(logprob, missed == 0)
