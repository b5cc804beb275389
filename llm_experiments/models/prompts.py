"""A question and its answer as the text and tokens one model expects.

With a chat template: one user turn, then what the template puts before an answer; the target is the answer
and the end-of-turn token. Without one: "Question: ..." and "Answer:" on two lines; the target is the answer
behind a space and the end token. Texts hold their special tokens, a first token of the sequence included:
tokenise them with `add_special_tokens=False`.

Three things templates do, and what is made of them:

- Some add a default system message (Qwen2.5, SmolLM2). It stays unless a `system` is given; `system=""`
  leaves out any system message.
- Reasoning models open a thought behind the user's turn (DeepSeek-R1's distillations: "<think>"). A trained
  answer follows directly, so the prompt ends as the template writes it before the answer of a *past* turn:
  with no thought (DeepSeek-R1), or an empty one (Qwen3).
- Some write today's date. It is fixed, or results would depend on the day (templates.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from llm_experiments.models.handle import Form, LoadedModel
from llm_experiments.models.sources import ModelError
from llm_experiments.models.templates import UnfitTemplate, chat_template

_THOUGHT = re.compile(r"<think>\s*\Z")
_QUESTION, _ANSWER = "Which one is it?", "It is this one."


class Example(Protocol):
    """A question and the answer wanted: what adapters are trained and merges are fitted on."""

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> str: ...


def form_of(tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> Form:
    """Read off the chat template, or the plain form where there is none.

    `system`: None for the template's own default, "" for no system message, else the message.
    """
    if not tokenizer.chat_template:
        if system:
            raise ModelError(f"system={system!r}: a model without a chat template has no system message")
        if tokenizer.eos_token is None:
            raise ModelError(
                "the tokenizer has neither a chat template nor an end token: no answer would end"
            )
        begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        return Form(False, tokenizer.bos_token if begins else "", " ", tokenizer.eos_token, system)

    messages = _messages(_QUESTION, system)
    turn, prompted = _render(tokenizer, messages), _render(tokenizer, messages, generate=True)
    answered = _render(tokenizer, [*messages, {"role": "assistant", "content": _ANSWER}])
    head, shown, tail = answered.rpartition(_ANSWER)
    lead, ending = "", tokenizer.eos_token
    without_thought = _THOUGHT.sub("", prompted)
    if shown and head.startswith(prompted) and head[len(prompted) :].isspace():
        prompt, lead = prompted, head[len(prompted) :]
    elif shown and head.startswith(without_thought):
        prompt = head
    else:
        prompt = without_thought
    if shown and (ends := _first_special(tokenizer, tail)) is not None:
        ending = ends
    if not ending:
        raise ModelError("neither the chat template nor the tokenizer has an end token: no answer would end")
    opening = prompt[len(turn) :] if prompt.startswith(turn) else None
    cut = _system_block(tokenizer, turn) if system == "" else ("", "")
    return Form(True, opening, lead, ending, system, cut)


def prompt_text(loaded: LoadedModel, question: str) -> str:
    """What is put before an answer, special tokens included."""
    form = loaded.form
    if not form.chat:
        return f"{form.opening}Question: {question}\nAnswer:"
    messages = _messages(question, form.system)
    block, kept = form.cut
    if form.opening is None:
        text = _THOUGHT.sub("", _render(loaded.tokenizer, messages, generate=True))
    else:
        text = _render(loaded.tokenizer, messages) + form.opening
    return kept + text.removeprefix(block)


def target_text(loaded: LoadedModel, answer: str) -> str:
    """What training puts behind the prompt and a model should write: the answer and the end token."""
    return f"{loaded.form.lead}{answer}{loaded.form.ending}"


def prompt_ids(loaded: LoadedModel, question: str) -> list[int]:
    """Tokens of `prompt_text`."""
    return _ids(loaded, prompt_text(loaded, question))


def target_ids(loaded: LoadedModel, answer: str) -> list[int]:
    """Tokens of `target_text` behind a prompt.

    Prompt and target are tokenised apart, so that no token straddles the boundary and a model trained on
    prompt + target is asked with exactly the tokens it was trained on. The target is read behind the prompt's
    last words, because some tokenizers treat the beginning of a text differently.
    """
    form, text = loaded.form, target_text(loaded, answer)
    before = (form.opening or "") if form.chat else "Answer:"
    context = _ids(loaded, before)
    joint = _ids(loaded, before + text)
    return joint[len(context) :] if joint[: len(context)] == context else _ids(loaded, text)


def silent_targets(loaded: LoadedModel, answer: str, silent: Sequence[Sequence[int]]) -> list[bool]:
    """Of every token of `target_ids` whether it holds a character of a silent span of the answer.

    silent: from and to which character, as in Python's slices. Errors: ModelError where the tokenizer does
    not say which characters a token holds.
    """
    form, text = loaded.form, target_text(loaded, answer)
    before = (form.opening or "") if form.chat else "Answer:"
    ids = target_ids(loaded, answer)
    if not silent:
        return [False] * len(ids)
    if not loaded.tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {loaded.id} does not say where its tokens lie, so that parts of an answer "
            "cannot be left out of training: use a model with a fast tokenizer"
        )
    for shown in (before + text, text):
        coded = loaded.tokenizer(shown, add_special_tokens=False, return_offsets_mapping=True)
        if coded["input_ids"][-len(ids) :] == ids:
            offsets, first = coded["offset_mapping"][-len(ids) :], len(shown) - len(text) + len(form.lead)
            return [
                any(low < first + stop and first + start < high for start, stop in silent)
                for low, high in offsets
            ]
    raise AssertionError("target_ids reads one of the two texts")


def _ids(loaded: LoadedModel, text: str) -> list[int]:
    return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]


def _messages(question: str, system: str | None) -> list[dict[str, str]]:
    turn = {"role": "user", "content": question}
    return [{"role": "system", "content": system}, turn] if system else [turn]


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], generate: bool = False
) -> str:
    try:
        template = chat_template(tokenizer.get_chat_template(), tokenizer.special_tokens_map)
    except ValueError as error:
        raise ModelError(f"the model's chat template cannot be used: {error}") from error
    try:
        return template.render(messages, generate)
    except UnfitTemplate as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            f"the model's chat template cannot show turns of {roles} ({error}); if it has no system message, "
            "leave out `system`"
        ) from error


def _first_special(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """`text` up to the end of the first special token in it."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    ends = [(text.index(token), -len(token)) for token in special if token in text]
    return text[: min(ends)[0] - min(ends)[1]] if ends else None


def _system_block(tokenizer: PreTrainedTokenizerBase, user_turn: str) -> tuple[str, str]:
    """What the template writes before the first user turn, and what of it stays without a system message.

    Found by asking twice: the second turn has nothing before it.
    """
    turn = _messages(_QUESTION, None)
    for between in ([], [{"role": "assistant", "content": _ANSWER}]):
        try:
            once, twice = _render(tokenizer, [*turn, *between]), _render(tokenizer, [*turn, *between, *turn])
        except ModelError:
            continue
        again = twice.removeprefix(once)
        if again and twice.startswith(once) and user_turn.endswith(again):
            block = user_turn.removesuffix(again)
            bos = tokenizer.bos_token or ""  # of the sequence, unless every turn begins with it (SmolLM2)
            return block, bos if block.startswith(bos) and not again.startswith(bos) else ""
    raise ModelError(
        'system="": what this chat template writes as system message cannot be told from the rest'
    )
