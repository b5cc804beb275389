"""Which change of a layer's output makes the model write an answer: value vectors, by gradient descent.

The method of ROME's second step, without its KL term: the model is frozen, the change w_i of the output of
one down projection is free, and the answer is taught token by token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from llm_experiments.editing.features import Down, EditError, chosen_layers, encode, observe, padded
from llm_experiments.merges.hooks import adding
from llm_experiments.models.handle import LoadedModel
from llm_experiments.models.prompts import prompt_ids, target_ids

Array = np.ndarray


@dataclass(frozen=True)
class Values:
    """Changes w of the output found by gradient descent, and how well they make the model write the answers.

    nll: mean over the answer's tokens of -log p, in nats, with w and, `start`, without. size: |w| / |W phi|.
    """

    changes: Float[Array, "fact hidden"]
    start: tuple[float, ...]
    nll: tuple[float, ...]
    size: tuple[float, ...]
    steps: int

    def rows(self) -> list[dict[str, float]]:
        """One row of plain data for each fact."""
        each = zip(self.start, self.nll, self.size, strict=True)
        return [{"nll_before": a, "nll": b, "size": c, "steps": self.steps} for a, b, c in each]


def value_vectors(
    loaded: LoadedModel,
    questions: Sequence[str],
    answers: Sequence[str],
    layer: int,
    read: Float[Array, "feature fact"] | None = None,
    *,
    begun: Sequence[str] | None = None,
    steps: int = 40,
    rate: float = 0.5,
    penalty: float = 0.01,
    enough: float = 0.02,
    batch: int = 16,
) -> Values:
    """Changes w_i of the layer's output that make the frozen model write answer i, found by Adam.

        minimise  sum_i mean_t -log p(answer_it | question_i, answer_i<t) + penalty |w_i|^2 / |W phi_i|^2

    over all w at once, answers given token by token (the model's end of turn included). The start is w = 0,
    so nothing is drawn at random. It stops after `steps`, or once every answer has at most `enough` nats a
    token. rate: Adam's, in units of the root mean square of W phi_i.

    read: as of `readout`; the model then runs with the whole edit, that is with <read_j, phi> w_j added at
    every token, so that what is found is what the edit will do. None: w_i is added at the question's last
    token alone, as in ROME.
    """
    _check_search(steps, rate, penalty, questions, answers)
    down = chosen_layers(loaded.model, [layer])[layer]
    rows = _taught(loaded, questions, answers, begun)
    size = np.linalg.norm(observe(loaded, questions, [layer], begun=begun)[layer].base.astype(float), axis=1)
    device, hidden = down.linear.weight.device, down.linear.out_features
    device = loaded.device if device.type == "meta" else device  # weights that are moved in for each pass
    scale = torch.tensor(size / np.sqrt(hidden), dtype=torch.float32, device=device)[:, None]
    direction = None if read is None else torch.tensor(read, dtype=torch.float32, device=device)
    free = torch.zeros(len(rows), hidden, device=device, requires_grad=True)
    adam = torch.optim.Adam([free], lr=rate)
    first: list[float] = []
    with _frozen(loaded.model):
        for step in range(steps + 1):
            adam.zero_grad()
            nll: list[float] = []
            for start in range(0, len(rows), batch):
                chunk = slice(start, start + batch)
                changed = free * scale
                with _changed(down, changed, direction, [key for key, _ in rows[chunk]], start):
                    losses = _losses(loaded, rows[chunk])
                losses.sum().backward()
                nll += losses.tolist()
            first = first or nll
            if step == steps or max(nll) <= enough:
                break
            (penalty * (free**2).mean(dim=1).sum()).backward()
            adam.step()
    changes = (free * scale).detach().double().cpu().numpy()
    relative = np.linalg.norm(changes, axis=1) / size
    return Values(changes, tuple(first), tuple(nll), tuple(relative.tolist()), step)


def _check_search(
    steps: int, rate: float, penalty: float, questions: Sequence[str], answers: Sequence[str]
) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise EditError(f"steps is {steps!r}; it must be a whole number >= 1")
    for name, value, least in (("rate", rate, "> 0"), ("penalty", penalty, ">= 0")):
        if not np.isfinite(value) or value < 0 or (least == "> 0" and value == 0):
            raise EditError(f"{name} is {value!r}; it must be a finite number {least}")
    if not questions or len(questions) != len(answers):
        raise EditError(f"{len(questions)} questions and {len(answers)} answers: give one answer for each")


def _taught(
    loaded: LoadedModel, questions: Sequence[str], answers: Sequence[str], begun: Sequence[str] | None
) -> list[tuple[int, list[int]]]:
    """For each fact, where its key is and the tokens of question and answer."""
    rows = []
    for question, answer, start in zip(questions, answers, begun or [""] * len(answers), strict=True):
        taught = prompt_ids(loaded, question) + target_ids(loaded, answer)
        known = encode(loaded, question, start)
        if taught[: len(known)] != known or not answer.removeprefix(start).strip():
            raise EditError(
                f"the answer {answer!r} does not begin with {start!r} and go on with whole words; give its "
                "beginning"
            )
        rows.append((len(known) - 1, taught))
    return rows


def _losses(loaded: LoadedModel, rows: Sequence[tuple[int, list[int]]]) -> torch.Tensor:
    """Mean over the answer's tokens of -log p, (fact,)."""
    tokens = padded([ids for _, ids in rows], loaded.device)
    width, from_ = tokens.shape[1], min(key for key, _ in rows)
    logits = loaded.model(input_ids=tokens, use_cache=False, logits_to_keep=width - from_).logits
    losses = []
    for (key, ids), own, line in zip(rows, logits.float(), tokens, strict=True):
        wanted = line[key + 1 : len(ids)].to(own.device)
        losses.append(torch.nn.functional.cross_entropy(own[key - from_ : len(ids) - 1 - from_], wanted))
    return torch.stack(losses)


@contextlib.contextmanager
def _changed(
    down: Down, changes: torch.Tensor, read: torch.Tensor | None, keys: Sequence[int], first: int
) -> Iterator[None]:
    """Add the changes to the module's output, at every token by `read` or at each row's key token."""

    def shift(x: torch.Tensor) -> torch.Tensor:
        if read is not None:
            return (x.to(read.dtype) @ read) @ changes
        row = torch.arange(len(keys), device=x.device)
        place = torch.zeros(*x.shape[:-1], 1, device=x.device)
        place[row, torch.tensor(keys, device=x.device)] = 1.0
        return place * changes[first : first + len(keys), None]

    hook = down.module.register_forward_hook(adding(shift))
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    """Gradients for nothing of the model, no dropout; afterwards everything is as before."""
    training, trained = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)
