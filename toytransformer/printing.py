"""A prediction as text: what was predicted in words, and a table of questions, answers and outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from toytransformer.compositions import OUTCOMES, Record

if TYPE_CHECKING:
    from toytransformer.layers import StackPrediction
    from toytransformer.prediction import Prediction
    from toytransformer.symmetry import SymmetricPrediction

    Predicted = Prediction | SymmetricPrediction | StackPrediction

#: Sizes of a regime: their letters and names.
SIZES = {"d": "dimension", "m": "width"}
#: Questions printed; the records hold all of them.
SHOWN = 10
#: A relative gap of singular values below this is none: what is left of it is rounding.
NO_GAP = 2.0**-26


def print_prediction(predicted: Predicted, records: tuple[Record, ...]) -> None:
    console = Console()
    for line in _headings(records[0]):
        console.print(line, highlight=False, markup=False)
    shown = records[:SHOWN]
    console.print(_answers(predicted, shown))
    if len(records) > len(shown):
        console.print(f"... and {len(records) - len(shown)} more questions")
    gap = records[0].spectral_gap
    if gap is not None:
        console.print(f"spectral gap {gap:.3g}" if gap > NO_GAP else "spectral gap 0")
    if records[0].undetermined is not None:
        console.print(f"undetermined: {records[0].undetermined}", highlight=False, markup=False)
        return
    if weights := getattr(predicted, "details", {}).get("weights"):
        text = ", ".join(f"{number:.4f}" for number in weights)
        console.print(f"weights: {text}", highlight=False)
    console.print(
        "  ".join(f"{outcome} {predicted.shares[outcome]:.1%}" for outcome in OUTCOMES), highlight=False
    )


def _answers(predicted: Predicted, shown: tuple[Record, ...]) -> Table:
    """Question, answer, outcome and merged output; the question alone where the others are arbitrary."""
    if shown[0].undetermined is not None:
        table = Table("question", "answer", "outcome")
        for record in shown:
            table.add_row(record.prompt, "undetermined", "undetermined")
        return table
    errors = _standard_errors(predicted, SHOWN)
    what = "scores" if "typed" in shown[0].regime else "coefficients"
    heading = f"merged output (largest {what}" + (" ± standard error)" if errors else ")")
    table = Table("question", "answer", "outcome", heading)
    for row, record in enumerate(shown):
        outcome = max(record.shares, key=lambda name: record.shares[name])
        mixture = sorted(record.mixture.items(), key=lambda item: -abs(item[1]))[:6]
        table.add_row(
            record.prompt,
            record.answer or "(tie)",
            outcome if record.shares[outcome] == 1 else f"{outcome} {record.shares[outcome]:.0%}",
            "  ".join(f"{entity}:{value:+.4f}{errors.get((row, entity), '')}" for entity, value in mixture),
        )
    return table


def _headings(record: Record) -> list[str]:
    """What was predicted, in words: the composition, the merge, the regime."""
    facts, known = record.setting["facts"], "known" if record.setting["known"] else "fresh"
    if degree := record.setting.get("degree"):
        known += f" (degree {degree})"
    details = [f"{key}={value}" for key, value in record.options.items()]
    if record.weights is not None:
        details.append("weights " + ", ".join(f"{weight:g}" for weight in record.weights))
    regime = record.regime
    sizes = [f"{letter} = {regime[key]}" for letter, key in SIZES.items() if key in regime]
    sizes += [f"{regime['mask']} mask", f"{regime['attention']} attention", f"seed {regime['seed']}"]
    beyond = [f"{regime['base']} base"] if "base" in regime else []
    beyond += [f"typed answers, t = {regime['typed']:g}"] if "typed" in regime else []
    if "relation_length" in regime:
        beyond.append(f"relations {regime['relation_length']:g} times as long as entities")
    if count := record.setting.get("bystanders"):
        beyond.append(f"{count} bystander{'s' * (count != 1)}")
    if isinstance(places := regime.get("layers"), dict):
        held = [f"{name} in {', '.join(map(str, layers))}" for name, layers in places.items()]
        labels = "tied" if regime["tied"] else "untied"
        beyond.insert(0, f"{regime['count']} layers, labels {labels}, {'; '.join(held)}")
        beyond += ["a trained base in all layers"] if regime["base_layers"] else []
    beyond += ["the base knows x R2 of its own"] if record.setting.get("own_second") else []
    lines = [
        f"{record.composition}: {facts} {known} fact{'s' * (facts != 1)} in each adapter",
        f"merged: {', '.join(record.adapters)} by {record.rule}" + f" ({'; '.join(details)})" * bool(details),
        f"regime: {regime['name']}, {', '.join(sizes)}",
    ]
    return lines + [f"model: {', '.join(beyond)}"] * bool(beyond)


def _standard_errors(predicted: Predicted, first: int) -> dict[tuple[int, str], str]:
    """The derived standard errors of the first questions' outputs, as text, where there are such."""
    from toytransformer import estimates
    from toytransformer.memory import NotEnoughMemoryError
    from toytransformer.prediction import Prediction
    from toytransformer.regimes import RegimeError

    if not isinstance(predicted, Prediction):
        return {}
    try:
        errors = estimates.standard_error(predicted, first)
    except (RegimeError, NotEnoughMemoryError):
        return {}
    names = predicted.composition.world.entities
    return {(row, names[e]): f"±{errors[row, e]:.4f}" for row, e in zip(*errors.nonzero(), strict=True)}
