"""Steps that say what merges will lose, and what they then do lose: two steps, so that one can be kept first.

    Forecast   lines of kind "library" and "predicted"; no merge is measured for them
    Outcome    lines of kind "measured", each of a predicted merge
    Diagnosis  lines of kind "finding" and "sentence": all that `diagnose` says of a library

A merge loses what its adapters know alone: `kept` of `known` answers are still right, and -log p of an answer
rises from `alone`, that of the adapter that knows it, to `loss`, both in nats and in the mean over questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llm_experiments.adapters.compatible import of_one_base
from llm_experiments.diagnose.answers import AnswerSheet, Scores
from llm_experiments.diagnose.combining import Combinations, combine, foreseen
from llm_experiments.diagnose.findings import findings
from llm_experiments.diagnose.leaks import leaks
from llm_experiments.diagnose.library import LibraryGeometry, measure
from llm_experiments.diagnose.tables import numbers
from llm_experiments.diagnose.verdict import verdict
from llm_experiments.domains.own.questions import Question
from llm_experiments.engine.addresses import Address, Ref
from llm_experiments.engine.context import Context
from llm_experiments.engine.steps import Resources, Step
from llm_experiments.merges import merging
from llm_experiments.origin import origin
from llm_experiments.steps.adapters import read_library
from results.rows import Scalar
from toytransformer.compositions import Merge, replace_file

#: The lines of both steps; a run gathers them under this name.
FILE = "merges.jsonl"
#: Beside them: which questions the adapter that was taught them answers alone.
KNOWN = "known.json"


@dataclass(frozen=True)
class Forecast(Step):
    """What merges of a library will lose, by the mixture law and by the adapters' weights alone.

    questions: each with the adapter that was taught it. merges: by name as `combine` calls them. about: what
    the lines say of the adapters. title: for people only.
    """

    kind = "forecast"
    version = 2
    resources = Resources(model=True)

    title: str = field(compare=False)
    digest: str
    library: Mapping[str, Address]
    questions: Ref
    merges: tuple[str, ...]
    about: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"forecast of {self.title}"

    def compute(self, context: Context, folder: Path) -> None:
        library = read_library(context, self.library)
        questions = _questions(context, self.questions)
        geometry = measure(library)
        asked = foreseen(context.model, library, questions, geometry)
        lines: list[Mapping[str, object]] = [
            {
                "kind": "library",
                "forecast": self.address,
                "base": context.model.id,
                "digest": self.digest,
                **self.about,
                "library": list(self.library),
                "adapters": list(self.library.values()),
                "questions": len(questions),
                "known": int(asked.known.sum()),
                "alone": _alone(asked),
                **_angles(geometry),
                "provenance": origin(),
            }
        ]
        for one in asked.merges:
            if one.name in self.merges:
                rule = geometry.rules.get(one.name)
                lines.append(
                    {
                        "kind": "predicted",
                        "forecast": self.address,
                        "merge": one.name,
                        "rule": one.merge.rule,
                        "given": one.merge.weights,
                        "weights": one.weights,
                        "own": one.own,
                        "keeps": None if rule is None else numbers(rule.keeps),
                        **_lost(asked.known, one.predicted),
                    }
                )
        replace_file(folder / KNOWN, [json.dumps(asked.known.tolist())])
        _write(folder, lines)


@dataclass(frozen=True)
class Outcome(Step):
    """What the merges of a forecast do lose. title: for people only."""

    kind = "outcome"
    resources = Resources(model=True)

    title: str = field(compare=False)
    forecast: Address
    library: Mapping[str, Address]
    questions: Ref

    @property
    def label(self) -> str:
        return f"outcome of {self.title}"

    def compute(self, context: Context, folder: Path) -> None:
        library = read_library(context, self.library)
        sheet = AnswerSheet.of(context.model, _questions(context, self.questions))
        before = context.results(self.forecast)
        known = np.array(json.loads((before / KNOWN).read_text(encoding="utf-8")), bool)
        lines = []
        for line in map(json.loads, (before / FILE).read_text(encoding="utf-8").splitlines()):
            if line["kind"] == "predicted":
                merge = Merge(line["rule"], line["given"] and tuple(line["given"]))
                with merging.apply(context.model, library, merge):
                    scores = sheet.scores(sheet.logits(context.model))
                about = {"kind": "measured", "forecast": self.forecast, "merge": line["merge"]}
                lines.append({**about, **_lost(known, scores)})
        origin_line = {"kind": "outcome", "forecast": self.forecast, "provenance": origin()}
        _write(folder, [origin_line, *lines])


@dataclass(frozen=True)
class Diagnosis(Step):
    """What stands out in a library, and the verdict on its questions. title: for people only."""

    kind = "diagnosis"
    resources = Resources(model=True)

    title: str = field(compare=False)
    digest: str
    library: Mapping[str, Address]
    questions: Ref
    about: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"diagnosis of {self.title}"

    def compute(self, context: Context, folder: Path) -> None:
        library, apart = of_one_base(read_library(context, self.library))
        questions, geometry = _questions(context, self.questions), measure(library)
        asked = combine(context.model, library, questions, geometry)
        said = verdict(asked, leaks(context.model, library, questions, asked.owners))
        about = {"diagnosis": self.address, "base": context.model.id}
        first = {"kind": "diagnosis", **about, **self.about, "library": list(self.library)}
        lines: list[Mapping[str, object]] = [
            {**first, "questions": len(questions), "decision": said.decision, "provenance": origin()},
            *({"kind": "finding", **about, "finding": one.to_dict()} for one in findings(geometry, apart)),
            *({"kind": "sentence", **about, "sentence": one.to_dict()} for one in said.sentences),
        ]
        _write(folder, lines)


def _questions(context: Context, ref: Ref) -> list[Question]:
    return [Question(**line) for line in context.input(ref)]


def _lost(known: np.ndarray, scores: Scores) -> dict[str, object]:
    return {"kept": int(np.sum(scores.right.numpy() & known)), "loss": round(scores.loss, 6)}


def _alone(asked: Combinations) -> float:
    """Mean -log p of the answers, each by the adapter that was taught it."""
    own = [
        float(asked.alone(owner).logprob[place])
        for place, owner in enumerate(asked.owners)
        if owner is not None
    ]
    return round(-float(np.mean(own)), 6)


def _angles(geometry: LibraryGeometry) -> dict[str, object]:
    """The geometry over all modules, the mean over pairs of adapters of what is said of pairs."""
    pairs = np.triu_indices(len(geometry.names), k=1)
    measures = {
        "cosine": geometry.cosines,
        "read": geometry.overlap("read"),
        "write": geometry.overlap("write"),
    }
    told = {name: numbers(np.mean(values[pairs])) for name, values in measures.items()}
    return {**told, "energy": numbers(geometry.energy), "norms": numbers(geometry.norms)}


def _write(folder: Path, lines: Iterable[Mapping[str, object]]) -> None:
    replace_file(folder / FILE, (json.dumps(line, allow_nan=False) + "\n" for line in lines))
