"""Every name in the table of proofs/README.md, and in the ledger's proofs, exists. Needs no Coq."""

import ast
import importlib
import importlib.util
import itertools
import re
from functools import cache
from pathlib import Path

import pytest

from figures import registry
from toytransformer import merging
from toytransformer.ledger import CLAIMS

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("proofs_check", ROOT / "proofs" / "check.py")
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

COLUMNS = ("claim", "paper", "scope", "Coq", "Python", "test", "ledger", "status")
STATUS = {"proved", "on paper", "open"}


def rows(text: str) -> list[dict[str, str]]:
    """The rows of the table of claims, by column."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.replace(" ", "") == f"|{'|'.join(COLUMNS)}|")
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        assert len(cells) == len(COLUMNS), f"{len(cells)} columns: {line}"
        found.append(dict(zip(COLUMNS, cells, strict=True)))
    return found


def names(cell: str) -> list[str]:
    """What stands in backticks; a cell without says none."""
    found = re.findall(r"`([^`]+)`", cell)
    assert found or cell == "none", f"neither names nor none: {cell!r}"
    return found


@cache
def theorems() -> frozenset[str]:
    return frozenset(f"{file}.{name}" for file, found in check.statements().items() for name in found)


@cache
def functions_of(file: str) -> frozenset[str]:
    path = ROOT / "tests" / file
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def is_theorem(name: str) -> bool:
    return name in theorems()


def is_python(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return False


def is_test(name: str) -> bool:
    file, _, function = name.partition("::")
    return function.startswith("test_") and function in functions_of(file)


def is_claim(name: str) -> bool:
    return name in {claim.name for claim in CLAIMS}


EXISTS = {"Coq": is_theorem, "Python": is_python, "test": is_test, "ledger": is_claim}
TABLE = rows((ROOT / "proofs" / "README.md").read_text())


@pytest.mark.parametrize("column", EXISTS)
def test_every_name_in_the_table_exists(column):
    assert [name for row in TABLE for name in names(row[column]) if not EXISTS[column](name)] == []


def test_the_table_says_what_is_proved_and_where_it_stands():
    assert all(row["claim"] and row["paper"] and row["status"] in STATUS for row in TABLE)
    assert all(bool(names(row["Coq"])) == (row["status"] == "proved") for row in TABLE)


def test_every_row_names_a_scope_that_the_page_explains():
    page = (ROOT / "proofs" / "README.md").read_text()
    explained = page[page.index("| scope | what it is about |") :].split("\n\n")[0].splitlines()[2:]
    assert {row["scope"] for row in TABLE} == {line.split("|")[1].strip() for line in explained}


def test_the_table_holds_the_headline_theorems_and_no_others():
    assert {name for row in TABLE for name in names(row["Coq"])} == set(check.headlines())


def test_every_proof_that_the_ledger_names_is_a_theorem():
    named = {(claim.name, name) for claim in CLAIMS for name in filter(None, claim.proof.split(", "))}
    assert {(claim, name) for claim, name in named if not is_theorem(name)} == set()
    assert len({claim for claim, _ in named}) > 30


def test_every_file_is_introduced_and_is_there():
    text = (ROOT / "proofs" / "README.md").read_text()
    linked = re.findall(r"\]\(theories/(\w+)\.v\)", text)
    assert sorted(linked) == sorted(check.statements())


def test_every_label_blind_rule_is_on_the_list():
    """The page names the constructors of `listed`; they cover every rule that says it is label-blind, but for
    those that the page says they do not."""
    page = (ROOT / "proofs" / "README.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| (`.*) \|$", page, flags=re.MULTILINE)
    text = (ROOT / "proofs" / "theories" / "LabelBlindRules.v").read_text()
    variant = re.search(r"^Variant listed.*?\.$", text, flags=re.DOTALL | re.MULTILINE).group()
    assert [constructor for constructor, _ in listed] == re.findall(r"^\| (\w+)", variant, flags=re.MULTILINE)
    covered = {rule for _, cell in listed for rule in re.findall(r"`([^`]+)`", cell)}
    blind = {rule.name for rule in merging.RULES.values() if rule.label_blind and not rule.needs_data}
    (apart,) = re.findall(r"^Label-blind in every check by numbers, and not on the list: (.*)\.$", page, re.M)
    assert covered | set(re.findall(r"`([^`]+)`", apart)) == blind and not covered & set(apart.split("`"))


def test_the_statements_exist_with_their_code_tests_and_figures():
    lines = (ROOT / "docs" / "predictions.md").read_text().splitlines()
    start = lines.index("| statement | proof (`proofs/theories`) | code | test | figure |")
    found = list(itertools.takewhile(str.strip, lines[start + 2 :]))
    assert len(found) >= 8
    for line in found:
        _, statement, proof, code, test, figure, _ = (cell.strip() for cell in line.split("|"))
        assert statement and is_theorem(*names(proof)), line
        assert all((ROOT / path).exists() for path in names(code) + names(test)), line
        assert set(names(figure)) <= registry.figures().keys(), line


def test_every_headline_is_introduced_by_a_comment():
    bare = []
    for headline in check.headlines():
        file, name = headline.split(".")
        text = (ROOT / "proofs" / "theories" / f"{file}.v").read_text()
        (before, _) = re.split(rf"^(?:Theorem|Lemma|Corollary) {name}\b", text, flags=re.MULTILINE)
        bare += [] if before.rstrip().endswith("*)") else [headline]
    assert bare == []


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("Coq", "Proposition1.no_such_theorem"),
        ("Coq", "proposition1_bound"),
        ("Coq", "NoSuchFile.proposition1_bound"),
        ("Python", "toytransformer.adapters.no_such_function"),
        ("Python", "toytransformer.no_such_module.closed_form"),
        ("test", "test_theorems.py::test_no_such_test"),
        ("test", "test_no_such_file.py::test_argmax_is_right_iff"),
        ("test", "test_theorems.py"),
        ("ledger", "no such claim"),
    ],
)
def test_a_name_that_does_not_exist_is_found(column, name):
    assert not EXISTS[column](name)


def test_a_cell_with_neither_names_nor_none_is_refused():
    with pytest.raises(AssertionError, match="neither"):
        names("some theorem")
