"""Merges fitted on examples of the target task through the language model, and the controls they must beat.

The toy fits one matrix by least squares. Here the examples are questions and answers, the loss is the mean
-log p of an answer's tokens under the frozen model with the merge applied, and each layer has coefficients of
its own:

    cat-fitted       sum_i a_i Delta_i, a = softmax(l) or free       by gradient
    adaptive         sum_i f(w)_i Delta_i                            by gradient
    adaptive-random  the same with random matrices for the Delta_i   by gradient
    lorahub          (sum_i w_i B_i)(sum_i w_i A_i), one w for all   without gradients
    new-adapter      one new LoRA, none of the library               trained as the adapters were

`fit` returns a FittedMerge, which `merging.apply` and `merging.save_static` take like any other merge.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.optimize import minimize

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.merges.hooks import adding
from llm_experiments.merges.merging import FittedMerge, apply, converted, module_seed, target_layers
from llm_experiments.models.prompts import prompt_ids, target_ids
from toytransformer.compositions import replace_file
from toytransformer.compositions.spec import Merge
from toytransformer.merging import RuleError, check
from toytransformer.merging.fitted import random_twin
from toytransformer.merging.static import concatenated

#: f in sum_i f(w)_i Delta_i, over the last axis, and its inverse at n equal values.
FORMS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[float], float]]] = {
    "identity": (lambda w: w, lambda a: a),
    "tanh": (torch.tanh, math.atanh),
    "sigmoid": (torch.sigmoid, lambda a: math.log(a / (1 - a))),
    "softmax": (lambda w: torch.softmax(w, dim=-1), lambda a: 0.0),
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FILE = "fitted.json"


class Asked(Protocol):
    """An example: a question and the answer wanted."""

    question: str
    answer: str


@dataclass(frozen=True)
class Fitting:
    """How to fit.

    steps of Adam on batches of `batch` examples, the rate falling from learning_rate to zero in a straight
    line. evaluations: how often LoraHub's search may ask for the loss (its code: 40).
    """

    steps: int = 100
    batch: int = 16
    learning_rate: float = 0.05
    evaluations: int = 40

    def __post_init__(self):
        for name in ("steps", "batch", "evaluations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RuleError(f"{name} of a fit is {value!r}; it has to be a whole number of at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise RuleError(f"learning_rate of a fit is {self.learning_rate!r}; it has to be above 0")


def fit(
    loaded: Any,
    library: Sequence[AdapterWeights],
    merge: Merge,
    examples: Sequence[Asked],
    seed: int = 0,
    *,
    fitting: Fitting | None = None,
    training: Any = None,
) -> FittedMerge:
    """Fit a rule that needs data on `examples`; the model is as it was afterwards.

    training: the recipe of new-adapter, a `llm_experiments.adapters.recipe.Training`; by default that class's
    own at the library's rank and layers. details: weights per layer (lorahub: one set), the loss of the base
    (`loss_base`), at the start (`loss_start`, equal parts) and after (`loss`), the seed.
    Errors: RuleError for a rule without data, no examples, or a loss that is not finite.
    """
    rule, options = check(merge)
    fitting = fitting or Fitting()
    if not rule.needs_data:
        raise RuleError(f"rule {rule.name!r} needs no data; apply it as it is")
    if not examples:
        raise RuleError(f"rule {rule.name!r} is fitted on examples of the target task and got none")
    target_layers(loaded, library)
    seed = options.get("seed") if options.get("seed") is not None else seed
    rows = [_encoded(loaded, example) for example in examples]
    with _frozen(loaded.model):
        before = {"loss_base": mean_loss(loaded, rows, fitting.batch), "examples": len(rows), "seed": seed}
    names = tuple(adapter.name for adapter in library)
    if rule.name == "new-adapter":
        new, metrics = _new_adapter(loaded, library, examples, seed, training)
        fitted, merges = (new,), {layer: Merge("sum") for layer in new.modules}
        with _frozen(loaded.model), apply(loaded, fitted, Merge("sum")):
            found = {"loss": mean_loss(loaded, rows, fitting.batch), "training": metrics}
    elif rule.name == "lorahub":
        fitted = tuple(library)
        w, found = _search(loaded, library, rows, fitting, options["penalty"], options["bound"])
        merges = {layer: Merge("linear", w) for layer in library[0].modules}
    else:
        form = options.get("f") or ("identity" if options["form"] == "free" else options["form"])
        random = rule.name == "adaptive-random"
        fitted = tuple(random_adapter(adapter, seed) for adapter in library) if random else tuple(library)
        weights, found = _descend(loaded, fitted, form, rows, fitting, seed)
        merges = {layer: Merge("sum", w) for layer, w in weights.items()}
    return FittedMerge(merge, names, fitted, merges, {**before, **found})


def random_adapter(adapter: AdapterWeights, seed: int) -> AdapterWeights:
    """The control of arXiv 2602.12323: in every layer, the singular values of Delta and random vectors."""
    modules = {}
    for layer, lora in adapter.modules.items():
        rng = np.random.default_rng(module_seed(seed, f"{adapter.name} {layer}"))
        modules[layer] = random_twin(converted(lora, lora.write.dtype, torch.device("cpu")), rng)
    return AdapterWeights(f"random-{adapter.name}", modules, adapter.config, adapter.details)


# --- by gradient --------------------------------------------------------------------------------------------


def _descend(
    loaded: Any,
    library: Sequence[AdapterWeights],
    form: str,
    rows: Sequence[tuple[list[int], list[int]]],
    fitting: Fitting,
    seed: int,
) -> tuple[dict[str, tuple[float, ...]], dict[str, Any]]:
    """f(w) of every layer after Adam on w, from equal parts 1/n (from 1/2 for one adapter if f < 1)."""
    function, inverse = FORMS[form]
    count, layers = len(library), target_layers(loaded, library)
    begin = inverse(1 / count if count > 1 or form in ("identity", "softmax") else 0.5)
    w = torch.full((len(layers), count), begin, dtype=torch.float32, requires_grad=True)
    owner = [index for index, adapter in enumerate(library) for _ in range(adapter.rank)]
    coefficients = function(w)

    def shifter(row: int, name: str, layer: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        device = layer.weight.device
        parts = [converted(adapter.modules[name], torch.float32, device) for adapter in library]
        together = concatenated(parts, (1,) * count)

        def shift(x: torch.Tensor) -> torch.Tensor:
            scale = coefficients[row, owner].to(device)
            return together.written(scale * (x.to(device, torch.float32) @ together.read))

        return shift

    order = _batches(len(rows), fitting, seed)
    optimiser = torch.optim.Adam([w], lr=fitting.learning_rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / fitting.steps)
    losses = []
    with _frozen(loaded.model), ExitStack() as stack:
        for row, (name, layer) in enumerate(layers.items()):
            stack.callback(layer.register_forward_hook(adding(shifter(row, name, layer))).remove)
        start = mean_loss(loaded, rows, fitting.batch)
        for chosen in order:
            coefficients = function(w)
            loss, tokens = _summed_loss(loaded, [rows[index] for index in chosen])
            loss = loss / tokens
            if not bool(torch.isfinite(loss)):
                raise RuleError(
                    f"the loss became {float(loss)} after {len(losses)} steps; fit with a learning_rate "
                    f"below {fitting.learning_rate}"
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            decay.step()
            losses.append(float(loss.detach()))
        coefficients = function(w).detach()
        end = mean_loss(loaded, rows, fitting.batch)
    weights = {name: tuple(coefficients[row].tolist()) for row, name in enumerate(layers)}
    return weights, {"weights": weights, "loss_start": start, "loss": end, "loss_curve": losses}


def _batches(count: int, fitting: Fitting, seed: int) -> Iterator[np.ndarray]:
    """`fitting.steps` batches: one shuffled pass through the examples after another."""
    rng, queue = np.random.default_rng(seed), np.empty(0, int)
    for _ in range(fitting.steps):
        while len(queue) < min(fitting.batch, count):
            queue = np.concatenate([queue, rng.permutation(count)])
        chosen, queue = np.split(queue, [min(fitting.batch, count)])
        yield chosen


# --- without gradients --------------------------------------------------------------------------------------


def _search(
    loaded: Any,
    library: Sequence[AdapterWeights],
    rows: Sequence[tuple[list[int], list[int]]],
    fitting: Fitting,
    penalty: float,
    bound: float,
) -> tuple[tuple[float, ...], dict[str, Any]]:
    """argmin L(w) + penalty mean|w_i| over |w_i| <= bound, by SciPy's COBYLA.

    From equal parts: at LoraHub's own start, zero, L is stationary, as L(w) = L(-w). Of the two minima the
    one with the larger sum is returned, as in the toy. Nothing is drawn at random.
    """
    seen: list[tuple[float, float, tuple[float, ...]]] = []

    def objective(values: np.ndarray) -> float:
        w = tuple(float(value) for value in np.clip(values, -bound, bound))
        with apply(loaded, library, Merge("linear", w)):
            loss = mean_loss(loaded, rows, fitting.batch)
        loss = loss if math.isfinite(loss) else 1e6  # far worse than any answer, and COBYLA can still compare
        total = loss + penalty * float(np.mean(np.abs(w)))
        seen.append((total, loss, w))
        return total

    start = np.full(len(library), min(1 / len(library), bound))
    options = {"maxiter": fitting.evaluations, "rhobeg": min(0.4, bound / 2), "tol": 1e-4}
    with _frozen(loaded.model):
        limits = [(-bound, bound)] * len(library)
        minimize(objective, start, method="COBYLA", bounds=limits, options=options)
    _, loss, w = min(seen)
    w = w if sum(w) >= 0 else tuple(-value for value in w)
    return w, {"weights": w, "loss_start": seen[0][1], "loss": loss, "evaluations": len(seen)}


# --- a new adapter ------------------------------------------------------------------------------------------


def _new_adapter(
    loaded: Any, library: Sequence[AdapterWeights], examples: Sequence[Asked], seed: int, training: Any
) -> tuple[AdapterWeights, dict[str, Any]]:
    from llm_experiments.adapters.training import Training, train  # the only rule that trains factors

    if training is None:
        kinds = {layer.rsplit(".", 1)[-1] in ATTENTION for layer in library[0].modules}
        layers = "both" if len(kinds) == 2 else "attention" if True in kinds else "mlp"
        training = Training(rank=library[0].rank, alpha=library[0].rank, layers=layers)
    with tempfile.TemporaryDirectory() as folder:
        metrics = train(
            loaded, examples, training, seed=seed, adapter_index=len(library), out=Path(folder, "new-adapter")
        )
        del metrics["seconds"]  # details are the same for the same seed
        return peft_files.read(Path(folder, "new-adapter"), name="new-adapter"), metrics


# --- the loss -----------------------------------------------------------------------------------------------


def _encoded(loaded: Any, example: Asked) -> tuple[list[int], list[int]]:
    return prompt_ids(loaded, example.question), target_ids(loaded, example.answer)


def mean_loss(loaded: Any, rows: Sequence[tuple[list[int], list[int]]], batch: int) -> float:
    """Mean -log p of the answers' tokens, in nats; rows hold (prompt tokens, answer tokens)."""
    with torch.no_grad():
        sums = [_summed_loss(loaded, rows[first : first + batch]) for first in range(0, len(rows), batch)]
    return sum(float(loss) for loss, _ in sums) / sum(tokens for _, tokens in sums)


def _summed_loss(loaded: Any, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, int]:
    """Sum of -log p over the answers' tokens, and their number; only their logits are computed."""
    model = loaded.model
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    kept = length - min(len(prompt) for prompt, _ in rows) + 1
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(rows):
        tokens = torch.tensor([*prompt, *answer])
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        labels[row, len(prompt) : len(tokens)] = tokens[len(prompt) :]
    logits = model(
        input_ids=ids.to(loaded.device),
        attention_mask=mask.to(loaded.device),
        use_cache=False,
        logits_to_keep=kept,
    ).logits
    logits, labels = logits[:, :-1].float(), labels[:, -kept:][:, 1:].to(logits.device)
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="sum"
    )
    return loss, int((labels >= 0).sum())


@contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for the weights, for a while."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


# --- files --------------------------------------------------------------------------------------------------


def save(folder: str | os.PathLike, fitted: FittedMerge) -> None:
    """Write a fitted merge: fitted.json and, where other adapters than the library's are merged, those."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    own = [] if tuple(a.name for a in fitted.library) == fitted.names else list(fitted.library)
    for number, adapter in enumerate(own):
        base = str(adapter.config.get("base_model_name_or_path") or "")
        target = folder / f"adapter-{number}"
        peft_files.write(target, adapter.name, adapter.modules, base, details=adapter.details)
    content = {
        "merge": _plain(fitted.merge),
        "names": fitted.names,
        "adapters": len(own),
        "merges": {layer: _plain(merge) for layer, merge in fitted.merges.items()},
        "details": fitted.details,
    }
    replace_file(folder / FILE, [json.dumps(content, indent=1, allow_nan=False) + "\n"])


def load(folder: str | os.PathLike, library: Sequence[AdapterWeights]) -> FittedMerge:
    """What `save` wrote; `library` is the one that the merge was fitted on."""
    file = Path(folder) / FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        own = [peft_files.read(file.parent / f"adapter-{number}") for number in range(content["adapters"])]
        merges = {layer: _merge(given) for layer, given in content["merges"].items()}
        merge, names, details = _merge(content["merge"]), tuple(content["names"]), content["details"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RuleError(f"{file} holds no fitted merge ({error}); fit it anew") from error
    given = tuple(adapter.name for adapter in library)
    if given != names:
        raise RuleError(f"{file} was fitted on the adapters {names}, given were {given}")
    return FittedMerge(merge, names, tuple(own or library), merges, details)


def _merge(plain: Mapping[str, Any]) -> Merge:
    weights = None if plain["weights"] is None else tuple(plain["weights"])
    return Merge(plain["rule"], weights, plain["options"])


def _plain(merge: Merge) -> Mapping[str, Any]:
    weights = None if merge.weights is None else list(merge.weights)
    return {"rule": merge.rule, "weights": weights, "options": merge.option_dict}
