"""A language model as the rest of the project holds it: weights, tokenizer, identity, form of its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import transformers

if TYPE_CHECKING:
    from llm_experiments.embedded.corpus import BaseWorld

#: What is reported of a model: plain values, as JSON has them.
Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Form:
    """How a tokenizer's template frames a question and an answer; made by `prompts.form_of`.

    Prompt: the template's user turn, with `cut[0]` at its beginning replaced by `cut[1]`, then `opening`.
    Where `opening` is None the template's generation prompt is not just appended, and is used as it comes.
    Without a template, `opening` is the first token. Target: `lead`, the answer, `ending`.
    """

    chat: bool
    opening: str | None
    lead: str
    ending: str
    system: str | None = None
    cut: tuple[str, str] = ("", "")


def embedding(model: transformers.PreTrainedModel) -> torch.Tensor:
    """The embeddings of the tokens, (token, width): where a model's inputs go and in what it computes."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A frozen model with its tokenizer and its identity; made by `load.load`.

    `digest` (16 hex digits) is of whatever turns a question into an answer: weights, config, tokenizer, chat
    template, and the system message where one is set; not of dtype and device. `device` is where token ids
    go. `info` holds scalars to report. The tokenizer pads on the left; its pad token may be its end token, so
    mask by position. `base_world` is what the embedded model was taught (`people`, `facts`, `exposures`); it
    is None for other models.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    id: str
    digest: str
    device: torch.device
    dtype: torch.dtype
    form: Form
    info: Mapping[str, Scalar] = field(default_factory=dict)
    base_world: BaseWorld | None = None
