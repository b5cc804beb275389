"""What measured rows say: accuracy with intervals, outcomes, paired comparisons, the paper's number beside.

A *line* is a composition, a library and a merge; a *column* a dataset and the layers that are adapted; a
*kind* what was asked (two hops directly or step by step, each hop alone). `statistics` computes the figures.
"""

from __future__ import annotations

import gzip
import json
import math
import tomllib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from results import statistics
from toytransformer.compositions import OUTCOMES, Record, SpecError

#: Keys of a regime that belong to one row, or are shown elsewhere, and so tell no lines apart.
NOT_IN_LINES = (
    *("seed", "template", "temperature", "hop1_right", "bridge_copied", "hop2_right"),
    *("dataset", "layers", "control"),
)
#: What the paper calls our rules. "Uniform" and "Arrow" are families: both forms stand beside its number.
PAPER_RULES = {
    "linear": "uniform",
    "mean": "uniform",
    "arrow-factors": "arrow",
    "arrow-products": "arrow",
    "ties": "ties",
    "cat-fitted": "cat",
}
LIBRARIES = {
    ("hop1", "hop2"): "two-hop",
    ("hop1", "hop2", "oracle"): "with-oracle",
    ("oracle",): "oracle-only",
    ("mixed",): "mixed",
}
KINDS = {
    ("two-hop", "steps"): "two hops, step by step",
    ("two-hop", "direct"): "two hops, directly",
}


class TableError(ValueError):
    """Rows of which no table can be made; the message says why and what to do."""


@dataclass(frozen=True)
class Entry:
    """One cell of a table: how often one merged model was right, over items and training seeds.

    share, low, high: mean over seeds, and Wilson's interval over the items of one seed. seeds: share by seed.
    outcomes: shares of the five, over seeds. exact, contains: of the expected text and the right entity, None
    where nothing is right. shuffled: log-probability of right answers above that of the same answers dealt to
    other questions, None where candidates were not scored. paper: {"table", "low", "high", "models",
    "note"}, in percent, or None.
    """

    model: str
    digest: str | None
    kind: str
    line: str
    column: str
    composition: str
    adapters: tuple[str, ...]
    rule: str
    share: float
    low: float
    high: float
    cluster_low: float | None
    cluster_high: float | None
    items: int
    triplets: int
    seeds: Mapping[str, float]
    outcomes: Mapping[str, float]
    exact: float | None
    contains: float | None
    temperatures: tuple[float, ...]
    shuffled: statistics.Shuffled | None
    paper: Mapping[str, Any] | None


@dataclass(frozen=True)
class Comparison:
    """McNemar's exact test of two lines on the same items.

    seeds: by training seed, how many items only the first has right, how many only the second, and p.
    holm: p by seed, adjusted for all tests of the same model and kind (Holm).
    """

    model: str
    kind: str
    column: str
    first: str
    second: str
    seeds: Mapping[str, tuple[int, int, float]]
    holm: Mapping[str, float] = field(default_factory=dict)


def read_rows(lines: Iterable[bytes | str], where: str) -> list[Record]:
    """Records of JSON lines. Errors: TableError naming a line that is no record."""
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(Record.from_json(line))
        except SpecError as error:
            raise TableError(f"{where}, row {number}: {error}") from error
    return found


def read_file(path: Path) -> list[Record]:
    """Records of rows.jsonl.gz or rows.jsonl. Errors: TableError on anything else."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return read_rows(file, str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise TableError(
            f"'{path}' cannot be read ({error}): give a run's folder or its rows.jsonl.gz"
        ) from error


# ---- groups of rows ----


def _features(record: Record) -> dict[str, Any]:
    """What tells a row's group from others, by name: neither training seed nor template."""
    extras = {key: value for key, value in record.regime.items() if key not in NOT_IN_LINES}
    return {
        "source": record.source,
        "composition": record.composition,
        "control": record.regime.get("control"),
        "library": tuple(record.adapters),
        "rule": record.rule,
        "weights": record.weights,
        **{f"option {key}": value for key, value in record.options.items() if key != "temperature"},
        "dataset": record.regime.get("dataset"),
        "layers": record.regime.get("layers"),
        "group": record.group,
        "decode": record.decode,
        **{f"setting {key}": value for key, value in record.setting.items()},
        **{f"regime {key}": value for key, value in extras.items()},
    }


#: Parts of the regime that are shown only where two lines would else be called the same.
_QUIET = ("regime model", "regime names_seed", "regime split", "regime dtype")


def _line(features: Mapping[str, Any]) -> str:
    """A line's name: composition, library, rule and whatever else was chosen."""
    if features["control"] == "base":
        return f"{features['composition']}: base model"
    weights = features["weights"]
    rule = features["rule"] + (f" ({', '.join(f'{w:g}' for w in weights)})" if weights else "")
    library = "+".join(features["library"])
    if len(features["library"]) > 4:
        library = f"{len(features['library'])} adapters"
    if len(features["library"]) == 1:
        rule = "alone" if rule == "sum" else rule
    extras = [f"control={features['control']}"] if features["control"] == "random" else []
    extras += [
        f"{key.partition(' ')[2]}={value}"
        for key, value in features.items()
        if key.startswith(("option ", "regime ")) and key not in _QUIET and value is not None
    ]
    return f"{features['composition']}: {library} {rule}" + (f" [{', '.join(extras)}]" if extras else "")


def groups(records: Iterable[Record]) -> list[tuple[dict[str, Any], str, list[Record]]]:
    """Rows by features, in order of first appearance, each with its line's name; names are made distinct."""
    found: dict[str, tuple[dict[str, Any], list[Record]]] = {}
    for record in records:
        features = _features(record)
        key = json.dumps(features, sort_keys=True, default=list)
        found.setdefault(key, (features, []))[1].append(record)
    names = [_line(features) for features, _ in found.values()]
    places: dict[tuple, list[int]] = {}
    listed = list(found.values())
    for index, (features, _) in enumerate(listed):
        place = (names[index], features["source"], _column(features), features["group"], features["decode"])
        places.setdefault(place, []).append(index)
    for same in places.values():
        if len(same) > 1:
            keys = dict.fromkeys(key for index in same for key in listed[index][0])
            differing = [key for key in keys if len({repr(listed[index][0].get(key)) for index in same}) > 1]
            for index in same:
                told = (f"{key.split(' ')[-1]}={listed[index][0].get(key)}" for key in differing)
                names[index] += f" [{', '.join(told)}]"
    return [(features, name, rows) for (features, rows), name in zip(listed, names, strict=True)]


def _column(features: Mapping[str, Any]) -> str:
    """The dataset, and the layers that are adapted unless they are the MLPs, as in most of the paper."""
    layers = features["layers"]
    return f"{features['dataset']}" + (f", {layers}" if layers not in (None, "mlp") else "")


def _kind(features: Mapping[str, Any]) -> str:
    asked = (features["group"], features["decode"])
    return KINDS.get(asked, features["group"] + ("" if asked[1] == "direct" else ", step by step"))


def entries(records: Iterable[Record], *, experiment: str | None = None, draws: int = 999) -> list[Entry]:
    """Every group of rows as one Entry, in order of first appearance.

    experiment: its table of the paper is looked at first for a number to stand beside ours.
    """
    found = []
    for features, line, rows in groups(records):
        (row,) = statistics.summary(rows, by=(), draws=draws)
        temperatures = {t for r in rows if (t := r.regime.get("temperature")) is not None}
        found.append(
            Entry(
                model=features["source"],
                digest=features.get("regime model"),
                kind=_kind(features),
                line=line,
                column=_column(features),
                composition=features["composition"],
                adapters=features["library"],
                rule=features["rule"],
                **{key: row[key] for key in ("share", "low", "high", "cluster_low", "cluster_high")},
                items=row["items"],
                triplets=row["triplets"],
                seeds={str(seed): share for seed, share in row["seeds"].items()},
                outcomes={name: _mean(r.shares.get(name, 0.0) for r in rows) for name in OUTCOMES},
                exact=_mean(r.exact for r in rows),
                contains=_mean(r.contains for r in rows),
                temperatures=tuple(sorted(temperatures)),
                shuffled=_shuffled(rows, draws),
                paper=printed(features, experiment),
            )
        )
    return found


def _shuffled(rows: Sequence[Record], draws: int) -> statistics.Shuffled | None:
    scored = (label for row in rows for label in row.logprobs or ())
    if not any(label.startswith("shuffled:") for label in scored):
        return None
    return statistics.shuffled_baseline(rows, seed=0, draws=draws)


def _mean(values: Iterable[float | bool | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


# ---- comparisons ----


def comparisons(records: Iterable[Record]) -> list[Comparison]:
    """Paired tests on two-hop questions: each rule against its library's first, each setup against setup 0.

    Left out where the two lines do not have the same items and training seeds.
    """
    asked = [
        group for group in groups(records) if group[0]["group"] == "two-hop" and group[0]["control"] is None
    ]
    found = []
    for against in (("rule", "weights"), ("composition",)):
        places: dict[str, list] = {}
        for features, line, rows in asked:
            varying = [*against, *(key for key in features if key.startswith(("option ", "setting ")))]
            kept = {key: value for key, value in features.items() if key not in varying}
            key = json.dumps(kept, sort_keys=True, default=list)
            places.setdefault(key, []).append((features, line, rows))
        for (features, first, reference), *others in places.values():
            for _, second, rows in others:
                if _items(rows) != _items(reference):
                    continue
                tests = statistics.compare(reference, rows)
                seeds = {str(seed): (test.first, test.second, test.p) for seed, test in tests.items()}
                where = (features["source"], _kind(features), _column(features))
                found.append(Comparison(*where, first, second, seeds))
    distinct = list({(c.model, c.kind, c.column, c.first, c.second): c for c in found}.values())
    families: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in distinct:
        families.setdefault((comparison.model, comparison.kind), []).append(comparison)
    adjusted = {
        key: iter(statistics.holm([p for c in family for _, _, p in c.seeds.values()]))
        for key, family in families.items()
    }
    return [replace(c, holm={seed: next(adjusted[c.model, c.kind]) for seed in c.seeds}) for c in distinct]


def _items(rows: Iterable[Record]) -> set:
    return {(statistics.lookup(row, "seed"), statistics.item(row)) for row in rows}


# ---- the paper ----


@cache
def paper() -> dict[str, Any]:
    """paper_tables.toml: by table its caption, rows, values in percent and the cells that are in doubt."""
    return tomllib.loads(Path(__file__).with_name("paper_tables.toml").read_text(encoding="utf-8"))


def printed(features: Mapping[str, Any], experiment: str | None = None) -> dict[str, Any] | None:
    """What the paper prints for such a group of rows, None where it has no such cell.

    Of the model itself where it is one of the paper's, else the range over all of its models; from the table
    that `experiment` is named after, else from the one with most models. The paper's libraries
    were asked step by step; of single experts and of Table 12 it does not say how they were asked.
    """
    asked = _as_printed(features)
    if asked is None:
        return None
    tables = {name: {"models": paper()["models"], **paper()[name]} for name in paper() if name != "models"}
    for table in sorted(tables, key=lambda name: (name != experiment, -len(tables[name]["models"]))):
        content = tables[table]
        for row in content["rows"]:
            wanted = {k: v for k, v in {**content.get("fixed", {}), **row}.items() if k != "values"}
            if wanted.items() <= asked.items():
                values = dict(zip(content["models"], row["values"], strict=True))
                own = str(features["source"]).rpartition("/")[2]
                chosen = {own: values[own]} if own in values else values
                known = [value for value in chosen.values() if not math.isnan(value)]
                if known:
                    return {"table": table, "low": min(known), "high": max(known), "models": list(chosen)}
    return None


def _as_printed(features: Mapping[str, Any]) -> dict[str, Any] | None:
    """The features in the words of paper_tables.toml; None for what the paper has no number for."""
    composition, library = features["composition"], LIBRARIES.get(features["library"])
    changed = {"regime initial_a", "regime gauge", "regime relabelling"} & features.keys()
    if features["group"] != "two-hop" or features["weights"] or changed:
        return None
    rule = PAPER_RULES.get(features["rule"])
    adapters = features.get("regime adapters", "LoRA")
    if adapters != "LoRA":
        rule = {"cat": "concat", "linear": "linear"}.get(features.get("regime form"))
    asked = {"dataset": features["dataset"], "layers": features["layers"], "adapters": adapters}
    if composition in ("library-disjoint", "library-shared"):
        return {"rule": rule, "composition": composition} if rule and not features["control"] else None
    number = composition.removeprefix("setup-")
    if library is None or not number.isdecimal():
        return None
    alone = library in ("oracle-only", "mixed")
    if features["control"] not in ((None, features["library"][0]) if alone else (None,)):
        return None
    if alone:
        rule = "alone"
    elif features["decode"] != "steps" or rule is None:
        return None
    return {**asked, "setup": int(number), "library": library, "rule": rule}
