"""One self-contained page: what composes, every drawing, every claim of the ledger, and where they come from.

The ledger is the JSON that `python -m toytransformer verify --json FILE` writes: a list of rows with the keys
in `COLUMNS`. A row whose verdict starts with "fail" counts as failed. Drawings are embedded as images; where
a folder holds one drawing in both formats, SVG is taken. The opening is read off the rows of the outcome map.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from figures import store, words
from toytransformer.compositions import replace_file

COLUMNS = (
    "claim",
    "source",
    "regime",
    "expected",
    "measured",
    "tolerance",
    "tolerance_kind",
    "verdict",
    "note",
    "proof",
    "reason",
    "provenance",
)
MEDIA = {".svg": "image/svg+xml", ".png": "image/png"}  # in order of preference
#: Title and caption of each drawing, in the order of the page; others follow by name.
CAPTIONS = {
    "outcomes": (
        "What the merged model answers",
        "A line is a merge rule or a library of adapters, a column the number of facts in each adapter. "
        "Colour and word say which answer the two-hop question gets; a split cell shows shares.",
    ),
    "answers": (
        "What is answered, toy against language model",
        "The same libraries and merge rules, predicted and measured. The theory takes for granted that the "
        "base answers two-hop questions about known facts; the controls show whether this language model "
        "does.",
    ),
    "agreement": (
        "Predicted against measured",
        "A dot is one library, merge and way of asking. To the right of the line the toy answers rightly; "
        "a rank correlation of one would mean that it orders all of them as measured.",
    ),
    "survival": (
        "Whether a single hop survives the merge",
        "Above zero, the edited one-hop answer still wins. Answering in two steps needs this of both hops.",
    ),
    "weights": (
        "Survival of a single hop, toy against language model",
        "How often the edited answer is given as its adapter's share of the merge grows. The dashed step "
        "is the toy's edge.",
    ),
    "mixture": (
        "The two-hop answer inside the mixture",
        "How the right answer, the bridge entity and the base's answer gain and lose as weight moves from "
        "the first adapter to the second.",
    ),
    "layers": (
        "The theory's coefficients inside a language model",
        "How much of an edit at one question shows at another, in the features of each MLP. If nothing "
        "singles out the right second hop, both curves of the middle panel are one.",
    ),
    "bridges": (
        "Bridge training, setup by setup",
        "A two-hop question is answered step by step only where both of its hops survive the merge.",
    ),
    "gauge": (
        "The same updates, written in other factors",
        "Rules that merge factors (here linear) answer differently when an adapter's factors are turned, "
        "though its update stays the same. Rules that merge updates (here sum) do not.",
    ),
    "factors": (
        "The same updates in other factors, measured",
        "Each rule on the very same updates of a language model, written in several gauges and trained "
        "from one or from several initial factors.",
    ),
    "tables": (
        "The paper's tables, predicted and measured",
        "The paper's range over its models, the toy's prediction and our small models, line by line.",
    ),
    "leak": (
        "Where else an edit shows",
        "How much of an edit's change of output appears on prompts that share its entity, its relation or "
        "nothing.",
    ),
    "convergence": (
        "Finite networks approach the limit",
        "How far the coefficients of single sampled networks are from the limit, by width and by "
        "dimension, over the spread that the theory derives.",
    ),
}


class ReportError(ValueError):
    """The ledger or the drawings cannot be put on a page."""


def write(out: Path, ledger: Path, drawings: Path | None = None, rows: Path = store.COMMITTED) -> int:
    """Write the page to `out` and return how many rows failed. rows: the file behind the drawings."""
    checked, drawn = read_ledger(ledger), store.read(rows)
    page = render(checked, embed(drawings) if drawings else [], drawn)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, [page])
    return sum(failed(row) for row in checked)


def read_ledger(path: Path) -> list[dict]:
    """The ledger's rows; refuses a file that is not a list of rows with every column."""
    remedy = "`python -m toytransformer verify --json FILE` writes a ledger"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path} is not JSON ({error}); {remedy}") from error
    if not isinstance(rows, list) or not rows:
        raise ReportError(f"{path} holds no rows; {remedy}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ReportError(f"{path}: row {number} is {row!r}, not an object; {remedy}")
        if missing := [column for column in COLUMNS if column not in row]:
            raise ReportError(f"{path}: row {number} lacks {', '.join(missing)}; {remedy}")
    return rows


def failed(row: Mapping) -> bool:
    return str(row["verdict"]).lower().startswith("fail")


def claims(rows: Sequence[Mapping]) -> list[dict]:
    """The rows by claim, which is the text before the first colon; what fails comes first."""
    found: dict[str, dict] = {}
    for row in rows:
        name, _, statement = row["claim"].partition(": ")
        blank = {"name": name, "source": row["source"], "proof": row["proof"], "rows": [], "failures": 0}
        entry = found.setdefault(name, blank)
        entry["rows"].append({**row, "statement": statement or name})
        entry["failures"] += failed(row)
    for entry in found.values():
        entry["rows"].sort(key=failed, reverse=True)
    return sorted(found.values(), key=lambda entry: not entry["failures"])


def corrections(rows: Sequence[Mapping]) -> dict[str, list[str]]:
    """Where the paper's words are not what holds: the remarks that say so, once each, by claim."""
    found: dict[str, list[str]] = {}
    for row in rows:
        note = row["note"]
        if note.startswith("paper") or "the paper says" in note:
            remarks = found.setdefault(row["claim"].partition(": ")[0], [])
            if note not in remarks:
                remarks.append(note)
    return found


def embed(folder: Path) -> list[dict[str, str]]:
    """Each drawing of the folder once, as a data URI, in the order of CAPTIONS and then by name."""
    chosen: dict[str, Path] = {}
    for suffix in MEDIA:
        for path in sorted(folder.glob(f"*{suffix}")):
            chosen.setdefault(path.stem, path)
    order = [stem for stem in CAPTIONS if stem in chosen]
    order += sorted(chosen.keys() - CAPTIONS.keys())
    drawings = []
    for stem in order:
        title, caption = CAPTIONS.get(stem, (stem.replace("_", " ").replace("-", " "), ""))
        data = base64.b64encode(chosen[stem].read_bytes()).decode()
        uri = f"data:{MEDIA[chosen[stem].suffix]};base64,{data}"
        drawings.append({"name": title, "caption": caption, "uri": uri})
    return drawings


def render(rows: Sequence[Mapping], drawings: Sequence[Mapping], drawn: Sequence[Mapping] = ()) -> str:
    """The page as HTML; every text from outside is escaped. drawn: the rows behind the drawings."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value"] = value
    environment.tests["failed"] = failed
    origins = {"ledger": rows[0]["provenance"], "figures": drawn[0]["provenance"] if drawn else {}}
    return environment.get_template("report.html").render(
        claims=claims(rows),
        count=len(rows),
        failures=sum(map(failed, rows)),
        corrections=corrections(rows),
        summary=words.summary([row for row in drawn if row["figure"] == "outcomes"]),
        drawings=drawings,
        origins={name: flatten(origin) for name, origin in origins.items() if origin},
    )


def value(item: object, digits: int = 6) -> str:
    """A table cell: numbers to some digits, lists item by item, nothing for None."""
    match item:
        case None:
            return ""
        case bool() | int():
            return str(item)
        case float():
            return f"{item:.{digits}g}"
        case list() | tuple():
            return ", ".join(map(value, item))
        case dict():
            return ", ".join(f"{key}: {value(entry)}" for key, entry in item.items())
        case _:
            return str(item)


def flatten(mapping: Mapping) -> dict[str, str]:
    """Nested provenance as one level of "outer inner" names."""
    flat = {}
    for name, entry in mapping.items():
        if isinstance(entry, Mapping):
            flat |= {f"{name} {inner}": text for inner, text in flatten(entry).items()}
        else:
            flat[str(name)] = value(entry)
    return flat
