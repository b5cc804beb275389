"""The question and answer sentences: 50 hand-written paraphrases for each relation and each composition.

One TOML file each in templates/, named by its relations ("spouse_of.live_in.toml"). {x} is the entity asked
about, {y} the answer; of a composition, x is asked and y is the final answer. The position in the file is the
template's number and decides its split. "live_in" speaks of residence throughout, where the paper's examples
mix residence and place of birth.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "templates"
COUNT = 50
TRAIN, DEV, TEST = range(46), (46, 47), (48, 49)

SIGNATURES: Mapping[str, tuple[str, str]] = {
    "spouse_of": ("person", "person"),
    "child_of": ("person", "person"),
    "mentor_of": ("person", "person"),
    "live_in": ("person", "place"),
    "study_in": ("person", "place"),
}
"""What each relation leads from and to. child_of and mentor_of lead from X to X's child and X's mentor."""

COMPOSED = tuple(
    (first, second) for first in ("spouse_of", "child_of", "mentor_of") for second in ("live_in", "study_in")
)
"""The two-hop relations that have templates."""


class TemplateError(ValueError):
    """A template file or number that cannot be used; the message says what is allowed and what to do."""


@dataclass(frozen=True)
class Template:
    """One paraphrase: a question about {x} and the sentence that answers it with {y}."""

    question: str
    answer: str

    def ask(self, x: str) -> str:
        """The question about x."""
        return self.question.format(x=x)

    def tell(self, x: str, y: str) -> str:
        """The sentence that says y is the answer for x."""
        return self.answer.format(x=x, y=y)

    def named(self, x: str, y: str) -> tuple[int, int]:
        """From and to which character of `tell(x, y)` the answer y is named."""
        start = len(self.answer.partition("{y}")[0].format(x=x))
        return start, start + len(y)


def templates(relations: Iterable[str]) -> tuple[Template, ...]:
    """The 50 paraphrases for these relations, first hop first. Errors: TemplateError when there are none."""
    return _load(tuple(relations))


def template(relations: Iterable[str], number: int) -> Template:
    """Paraphrase `number`, 0 .. 49. Errors: TemplateError on unknown relations or another number."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < COUNT:
        raise TemplateError(f"template {number!r} does not exist: use an int from 0 to {COUNT - 1}")
    return templates(relations)[number]


def template_file(relations: Iterable[str]) -> Path:
    """The file that holds the paraphrases for these relations."""
    return FOLDER / f"{'.'.join(relations)}.toml"


def template_hashes() -> dict[str, str]:
    """SHA-256 of every template file by its name, so that exported data says what worded it."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(FOLDER.glob("*.toml"))
    }


def words(text: str) -> list[str]:
    """The words of a sentence without its placeholders, in lower case."""
    return re.findall(r"[a-z-]+", re.sub(r"\{[xy]\}('s)?", " ", text).lower())


@cache
def vocabulary() -> frozenset[str]:
    """Every word of every template, in lower case: no invented name may be one of them."""
    every = (t for path in FOLDER.glob("*.toml") for t in templates(path.stem.split(".")))
    return frozenset(word for t in every for word in words(f"{t.question} {t.answer}"))


@cache
def _load(relations: tuple[str, ...]) -> tuple[Template, ...]:
    path = template_file(relations)
    if not path.is_file():
        have = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
        raise TemplateError(f"no templates for {'.'.join(relations)!r}: use one of {have}")
    return read(path)


def read(path: Path) -> tuple[Template, ...]:
    """The checked paraphrases of a file. Errors: TemplateError naming the file, the line's number and why."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TemplateError(f"{path} cannot be read as TOML ({error}): restore the file") from error
    rows = table.get("templates")
    if set(table) != {"relations", "templates"} or ".".join(table["relations"]) != path.stem:
        raise TemplateError(
            f"{path}: give the keys relations = {path.stem.split('.')} and templates, no others"
        )
    if not isinstance(rows, list) or len(rows) != COUNT:
        raise TemplateError(
            f"{path} has {len(rows) if isinstance(rows, list) else 0} templates: give {COUNT}"
        )
    for number, row in enumerate(rows):
        _check_row(row, f"{path}, template {number}")
    for side, name in enumerate(("question", "answer")):
        seen: dict[str, int] = {}
        for number, row in enumerate(rows):
            if (first := seen.setdefault(row[side].lower(), number)) != number:
                raise TemplateError(f"{path}: {name} {number} repeats {name} {first}: word it another way")
    return tuple(Template(*row) for row in rows)


def _check_row(row: object, where: str) -> None:
    if not (isinstance(row, list) and len(row) == 2 and all(isinstance(text, str) for text in row)):
        raise TemplateError(f"{where} is {row!r}: give [question, answer]")
    question, answer = row
    for text, holes in ((question, ["x"]), (answer, ["x", "y"])):
        if sorted(re.findall(r"\{(.*?)\}", text)) != holes or text != " ".join(text.split()):
            need = " and ".join(f"{{{hole}}}" for hole in holes)
            raise TemplateError(f"{where}: {text!r} must hold {need} once each, and single spaces only")
    if question[-1] not in "?." or answer[-1] != ".":
        raise TemplateError(
            f"{where}: end the question with ? or a full stop and the answer with a full stop"
        )
