"""Reading a base model for the measured kernel: features, the unembedding of names, what it says itself.

    scenes of one draw of names -> rows (prompt, form, wording) -> ModelFeatures

Features are the inputs of the MLPs' down projections, as `editing.features` sees them. Those of a "stored"
prompt are the mean over the wordings that adapters are trained in, so that they are what gradient descent on
all of them has in common; those of asked prompts are kept wording by wording.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from llm_experiments.asking import evaluation
from llm_experiments.asking.decoding import candidate_logprobs, split_names
from llm_experiments.domains.task import Reading, Task, read_items, read_scorer
from llm_experiments.domains.two_hop import prompts
from llm_experiments.domains.two_hop.lexicon import Lexicon
from llm_experiments.domains.two_hop.prompts import Begun
from llm_experiments.domains.two_hop.scorer import entity_kinds
from llm_experiments.editing.features import EditError, chosen_layers, down_projections, observe
from llm_experiments.models.handle import LoadedModel
from llm_experiments.origin import origin
from llm_experiments.scoring.words import contains
from toytransformer.compositions import Composition
from toytransformer.model_features import ModelFeatures, Row

Array = np.ndarray

#: Training wordings whose features are averaged, unless another number is given.
WORDINGS = 8
#: Contexts times names that are scored at once.
ROWS = 1024
#: How an answer begins behind which names are cut into tokens for the unembedding.
BEGUN = "The answer is "


def layer_groups(text: str, layers: int) -> dict[str, list[int]]:
    """Groups of layers by name: "0,3" two layers, "0-9,10-19" two sums over ten, "all" each layer.

    Errors: EditError on what is no such list or names layers that the model lacks.
    """
    if text == "all":
        return {str(layer): [layer] for layer in range(layers)}
    groups: dict[str, list[int]] = {}
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or part.endswith("-"):
            raise EditError(f'layers {text!r}: give "all", or numbers and ranges by comma, as in 0,3 or 0-9')
        chosen = list(range(int(first), int(last or first) + 1))
        if not chosen or chosen[-1] >= layers:
            raise EditError(f"layers {part!r} do not exist; the model has layers 0 to {layers - 1}")
        groups[part] = chosen
    return groups


def read(
    loaded: LoadedModel,
    compositions: Sequence[Composition],
    words: Sequence[Lexicon],
    task: Task,
    reading: Reading,
    *,
    train: Sequence[int],
    test: Sequence[int],
    layers: str = "all",
    wordings: int = WORDINGS,
    tick: Callable[[str], None] = lambda what: None,
) -> ModelFeatures:
    """What the base does with the prompts of compositions on one draw of names; the first one is asked.

    words: the lexicon of each, which must agree. task: of the first, its items read from `reading`. train,
    test: numbers of the wordings. wordings: over about so many of the training ones the features of a stored
    prompt are averaged. layers: see `layer_groups`. tick: told what is done next.
    """
    names = _united(words)
    groups = layer_groups(layers, len(down_projections(loaded.model)))
    train = list(train)[:: max(1, len(train) // wordings)]
    rows, kept = _rows(compositions, words, train, test)
    tick(f"{sum(len(members) for members in rows.values())} prompts")
    grams, sizes = _grams(loaded, rows, groups)
    tick("answers of the base")
    items = [item for item in read_items(reading, task.items) if item.extra["template"] in test]
    scorer = read_scorer(reading, task.scorer, task.context)
    written = evaluation.texts(loaded, items)
    answers = evaluation.base_answers(items, written, scorer)
    said = {f"{item.extra['prompt']}/{item.ask}/{item.extra['template']}": answers[item.id] for item in items}
    surface = _surface(compositions, names, said.values())
    tick(f"log-probabilities of {len(surface)} names on {len(rows)} prompts")
    texts = list(surface.values())
    logprobs = _logprobs(loaded, [rows[row][0] if row[1] != "stored" else kept[row] for row in rows], texts)
    tick("answers with the facts in front")
    return ModelFeatures(
        rows=tuple(rows),
        grams=grams,
        sizes=sizes,
        entities=tuple(surface),
        surface=tuple(texts),
        unembedding=unembedding(loaded, texts),
        logprobs=logprobs,
        kinds=_kinds(compositions, words, surface),
        said=_called(said, surface, names),
        about={
            "model": loaded.id,
            "digest": loaded.digest,
            "dataset": words[0].dataset,
            "names": words[0].seed,
            "compositions": [one.name for one in compositions],
            "train": train,
            "module": "mlp.down_proj",
            "told": in_context(loaded, compositions[0], words[0], test),
            **{key: value for key, value in origin().items() if key != "when"},
        },
    )


def _rows(
    compositions: Sequence[Composition], words: Sequence[Lexicon], train: Sequence[int], test: Sequence[int]
) -> tuple[dict[Row, list[Begun]], dict[Row, Begun]]:
    """The texts that each row is the mean of, and of stored ones the text in the first test wording."""
    rows: dict[Row, list[Begun]] = {}
    kept: dict[Row, Begun] = {}
    for composition, lexicon in zip(compositions, words, strict=True):
        for prompt in prompts.stored(composition):
            row: Row = (str(prompt), "stored", None)
            if row not in rows:
                rows[row] = [prompts.asked_at_once(prompt, lexicon, k) for k in train]
                kept[row] = prompts.asked_at_once(prompt, lexicon, test[0])
    asked, lexicon = compositions[0], words[0]
    for k in test:
        for prompt in prompts.direct(asked):
            one = prompts.asked_at_once(prompt, lexicon, k)
            rows[one.row] = [one]
        for one in prompts.steps(asked, lexicon, k):
            rows[one.row] = [one]
    return rows, kept


def _grams(
    loaded: LoadedModel, rows: Mapping[Row, Sequence[Begun]], groups: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Array], dict[str, float]]:
    """By group the sum of its layers' Gram matrices over its mean diagonal, and the root of that."""
    layers = sorted({layer for group in groups.values() for layer in group})
    widths = {layer: down.linear.in_features for layer, down in chosen_layers(loaded.model, layers).items()}
    features = {layer: np.empty((len(rows), width)) for layer, width in widths.items()}
    for number, members in enumerate(_chunked(rows)):
        questions = [one.question for row in members for one in rows[row]]
        begun = [one.begun.rstrip() for row in members for one in rows[row]]
        seen = observe(loaded, questions, layers, begun=begun)
        counts = np.cumsum([0, *(len(rows[row]) for row in members)])
        for layer in layers:
            values = seen[layer].features.astype(float)
            for place, (low, high) in enumerate(itertools.pairwise(counts)):
                features[layer][number * CHUNK + place] = values[low:high].mean(axis=0)
    grams, sizes = {}, {}
    for name, group in groups.items():
        products = np.sum([features[layer] @ features[layer].T for layer in group], axis=0)
        scale = float(np.trace(products)) / len(rows)
        grams[name], sizes[name] = products / scale, math.sqrt(scale)
    return grams, sizes


def _logprobs(loaded: LoadedModel, scored: Sequence[Begun], names: Sequence[str]) -> Array:
    """log p of every name, (row, name); what several rows share is computed once."""
    contexts = list(dict.fromkeys((one.question, one.begun) for one in scored))
    values = candidate_logprobs(
        loaded,
        [question for question, _ in contexts],
        [begun for _, begun in contexts],
        [list(names)] * len(contexts),
        batch=ROWS,
    )
    found = dict(zip(contexts, values, strict=True))
    return np.array([found[one.question, one.begun] for one in scored])


#: Rows whose texts run through the model before their features are averaged.
CHUNK = 64


def _chunked(rows: Mapping[Row, object]) -> list[list[Row]]:
    listed = list(rows)
    return [listed[start : start + CHUNK] for start in range(0, len(listed), CHUNK)]


def unembedding(loaded: LoadedModel, names: Sequence[str]) -> dict[str, Array]:
    """Cosines of the names in the unembedding, by kind; see ModelFeatures."""
    _, tails = split_names(loaded, BEGUN, names)
    weight = loaded.model.get_output_embeddings().weight.detach()
    centre = weight.float().mean(dim=0).double().cpu().numpy()
    rows = {token: weight[token].double().cpu().numpy() for token in {t for tail in tails for t in tail}}
    first = np.stack([rows[tail[0]] for tail in tails])
    mean = np.stack([np.mean([rows[token] for token in tail], axis=0) for tail in tails])
    found = {}
    for kind, vectors in (("first", first), ("mean", mean)):
        found[kind] = _cosines(vectors)
        found[f"{kind} centred"] = _cosines(vectors - centre)
    return found


def _cosines(vectors: Array) -> Array:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def in_context(
    loaded: LoadedModel, composition: Composition, words: Lexicon, test: Sequence[int]
) -> dict[str, float]:
    """Share of two-hop questions whose answer names the right entity when both facts stand in front.

    By way of asking: "direct" and "steps". What is left out then is neither known nor merged: reading, the
    form of the answer, and copying the names.
    """
    listed = [one for k in test for one in prompts.told(composition, words, k)]
    shares = {}
    for way in dict.fromkeys(way for way, _, _ in listed):
        questions = [(question, name) for kind, question, name in listed if kind == way]
        texts = evaluation.answers(loaded, [q for q, _ in questions], max_new_tokens=96)
        right = [contains(_ending(text, way), name) for text, (_, name) in zip(texts, questions, strict=True)]
        shares[way] = float(np.mean(right))
    return shares


def _ending(text: str, way: str) -> str:
    """Of an answer in steps what stands behind its last "answer is"; where nothing does, the text itself."""
    _, found, end = text.rpartition("answer is")
    return end if found and way == "steps" else text


def _united(words: Sequence[Lexicon]) -> dict[str, str]:
    """The names of all lexicons. Errors: EditError where two give one entity different names."""
    names: dict[str, str] = {}
    for lexicon in words:
        for entity, name in lexicon.names.items():
            if names.setdefault(entity, name) != name:
                raise EditError(
                    f"{entity!r} is called {names[entity]!r} and {name!r}: give one draw of names"
                )
    return names


def _surface(
    compositions: Sequence[Composition], names: Mapping[str, str], said: Iterable[str | None]
) -> dict[str, str]:
    """Each name once, under the first entity that has it; what the base says beside them, as itself.

    First whom adapters are trained on and what they are taught, then the old answers to what is asked, then
    what the base says.
    """
    tokens: list[str | None] = []
    for one in compositions:
        taught = (fact for adapter in one.adapters for fact in adapter.stored(one.world))
        tokens += (name for fact in taught for name in (fact.prompt.entity, fact.answer))
        tokens += (question.old for question in one.questions)
    spoken = set(said)
    surface: dict[str, str] = {}
    taken: set[str] = set()
    for token in dict.fromkeys((*tokens, *said)):
        if token is None or (token not in names and token not in spoken):
            continue  # an old answer that nobody knows has no name
        if (name := names.get(token, token)) not in taken:
            surface[token] = name
            taken.add(name)
    return surface


def _called(
    said: Mapping[str, str | None], surface: Mapping[str, str], names: Mapping[str, str]
) -> dict[str, str | None]:
    """What the base says, by the entity under which the name is kept."""
    entity = {name: token for token, name in surface.items()}
    return {
        key: None if answer is None else entity.get(names.get(answer, answer)) for key, answer in said.items()
    }


def _kinds(
    compositions: Sequence[Composition], words: Sequence[Lexicon], surface: Mapping[str, str]
) -> dict[str, str]:
    kinds: dict[str, str] = {}
    for composition, lexicon in zip(compositions, words, strict=True):
        kinds |= entity_kinds(composition, lexicon)
    return {entity: kinds[entity] for entity in surface if entity in kinds}


__all__ = ["in_context", "layer_groups", "read", "unembedding"]
