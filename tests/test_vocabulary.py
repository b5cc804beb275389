"""Only the two-hop domain and the theory know hops; only the registry knows which merge rules there are."""

import ast
import re
from pathlib import Path

import pytest

from toytransformer.merging import RULES

ROOT = Path(__file__).parents[1]
SCANNED = ("results", "llm_experiments", "figures")
#: What nothing but a domain's own files may name: hops, bridges, setups of the paper's Table 1 ..
WORDS = re.compile(r"\bhops?\b|hop[12]|two[-_ ]hop|bridge|setup-", re.IGNORECASE)
#: .. and its data sets, as strings.
DATASETS = {"F", "H", "R"}
#: Files and folders that do, each with the reason.
KNOWING = {
    "llm_experiments/domains/two_hop": "the domain itself",
    "llm_experiments/embedded": "a model pretrained on the sentences of the domain",
    "llm_experiments/pages.py": "the project's own pages, which report its measurements",
    "figures/theory": "rows of the theory, which is of two-hop compositions",
    "figures/bars.py": "the outcomes of the theory",
    "figures/drawings/theory": "drawings of the theory",
    "figures/drawings/two_hop": "drawings of the domain",
    "figures/report/two_hop": "the domain's part of the page",
}
#: Where merge rules are listed by name: experiments, which say what they run.
LISTING = {
    "llm_experiments/domains/two_hop/conflicts.py",
    "llm_experiments/domains/two_hop/experiments.py",
    "llm_experiments/domains/two_hop/scenes.py",
    "llm_experiments/domains/two_hop/tiers.py",
    "llm_experiments/steps/recycled.py",
    "figures/theory",
}


def sources():
    for package in SCANNED:
        for file in sorted((ROOT / package).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")


def within(name, places):
    return [place for place in places if name == place or name.startswith(f"{place}/")]


def vocabulary(source):
    """Words of the two-hop domain in a source, and its data sets as strings."""
    yield from WORDS.findall(source)
    strings = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    yield from (value for value in strings if isinstance(value, str) and value in DATASETS)


def rule_lists(source):
    """Collections of a source that name two merge rules or more."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            parts = node.elts
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        else:
            continue
        named = {part.value for part in parts if isinstance(part, ast.Constant)} & set(RULES)
        if len(named) > 1:
            yield ast.unparse(node)


def test_nothing_outside_knows_the_words_of_the_two_hop_domain():
    said = {name: sorted(set(vocabulary(source))) for name, source in sources()}
    outside = {name: words for name, words in said.items() if words and not within(name, KNOWING)}
    assert not outside, outside
    used = {place for name, words in said.items() if words for place in within(name, KNOWING)}
    assert used == set(KNOWING), "no file needs these any more"


def test_rules_are_listed_by_experiments_alone():
    lists = {name: list(rule_lists(source)) for name, source in sources()}
    outside = {name: listed for name, listed in lists.items() if listed and not within(name, LISTING)}
    assert not outside, outside
    assert {place for name, listed in lists.items() if listed for place in within(name, LISTING)} == LISTING


@pytest.mark.parametrize(
    "source", ['x = "hop1"', "# two-hop questions", 'task == "setup-0"', 'dataset = "R"', "the_bridge = 1"]
)
def test_the_words_are_seen(source):
    assert list(vocabulary(source))


@pytest.mark.parametrize(
    "source", ['("sum", "mean")', '{"linear": 1, "ties": 2}', '["arrow-products", "dare"]']
)
def test_lists_of_rules_are_seen(source):
    assert list(rule_lists(source)) and not list(rule_lists('("sum", "other")'))
