"""Merges fitted on examples of the target task through the language model, and the controls they must beat.

The toy fits one matrix by least squares. Here the examples are questions and answers, the loss is the mean
-log p of an answer's tokens under the frozen model with the merge applied, and each layer has coefficients of
its own:

    cat-fitted       sum_i a_i Delta_i, a = softmax(l) or free       by gradient
    adaptive         sum_i f(w)_i Delta_i                            by gradient
    adaptive-random  the same with random matrices for the Delta_i   by gradient
    lorahub          (sum_i w_i B_i)(sum_i w_i A_i), one w for all   without gradients
    new-adapter      one new LoRA, none of the library               trained as the adapters were

`fit` returns a FittedMerge, which `merging.apply` and `saving.save_static` take like any other merge. How a
rule is fitted is `llm_experiments.merges.fitters`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.adapters.recipe import Training
from llm_experiments.merges.fitters import FITTERS, Fitting, FittingJob
from llm_experiments.merges.loss import Example, encoded, frozen, mean_loss
from llm_experiments.merges.merging import FittedMerge, target_layers
from llm_experiments.models.handle import LoadedModel
from toytransformer.compositions import replace_file
from toytransformer.compositions.io import read_json
from toytransformer.compositions.spec import Merge
from toytransformer.merging import RuleError, check

FILE = "fitted.json"


def fit(
    loaded: LoadedModel,
    library: Sequence[AdapterWeights],
    merge: Merge,
    examples: Sequence[Example],
    seed: int = 0,
    *,
    fitting: Fitting | None = None,
    training: Training | None = None,
) -> FittedMerge:
    """Fit a rule that needs data on `examples`; the model is as it was afterwards.

    training: the recipe of a new adapter; by default that class's own at the library's rank and layers.
    details: weights per layer (by search: one set), the loss of the base (`loss_base`), at the start
    (`loss_start`, equal parts) and after (`loss`), the seed.
    Errors: RuleError for a rule without data, no examples, or a loss that is not finite.
    """
    rule, options = check(merge)
    fitting = fitting or Fitting()
    if rule.fitted_by is None:
        raise RuleError(f"rule {rule.name!r} needs no data; apply it as it is")
    if not examples:
        raise RuleError(f"rule {rule.name!r} is fitted on examples of the target task and got none")
    if not library:
        raise RuleError(f"rule {rule.name!r} is fitted on a library of adapters and got none")
    by_gradient = rule.fitted_by == "products" and fitting.method == "gradient"
    if not by_gradient and (fitting.factors or fitting.objective != "answers"):
        what = "trained factors" if fitting.factors else f"the objective {fitting.objective!r}"
        raise RuleError(
            f"{what} needs a fit by gradient, and rule {rule.name!r} has none by method {fitting.method!r}: "
            "use 'adaptive' or 'cat-fitted' with method 'gradient'"
        )
    target_layers(loaded, library, same_modules=True)
    drawn = options.get("seed")
    seed = seed if drawn is None else int(drawn)
    tokens = [encoded(loaded, example) for example in examples]
    with frozen(loaded.model):
        before = {"loss_base": mean_loss(loaded, tokens, fitting.batch), "examples": len(tokens)}
    fitted = FITTERS[rule.fitted_by](
        FittingJob(loaded, tuple(library), rule, options, examples, tokens, seed, fitting, training)
    )
    names = tuple(adapter.name for adapter in library)
    return FittedMerge(
        merge, names, fitted.library, fitted.merges, {**before, "seed": seed, **fitted.details}
    )


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
        content = read_json(file)
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


def _plain(merge: Merge) -> Mapping[str, object]:
    weights = None if merge.weights is None else list(merge.weights)
    return {"rule": merge.rule, "weights": weights, "options": merge.option_dict}
