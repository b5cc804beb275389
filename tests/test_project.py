"""The README's commands exist, imports stay light, versions agree, no file names one machine's folders."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import settings
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_readme_names_only_make_targets_that_exist():
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))
    named = set(
        re.findall(r"\bmake ([a-z]+)", "\n".join(re.findall(r"```.*?```|`[^`]+`", README, flags=re.DOTALL)))
    )
    assert {"reproduce", "test"} <= named
    assert named <= targets


def test_readme_links_point_at_files():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_readmes_tree_is_the_repositorys():
    tree = re.search(r"```\n(toytransformer/.*?)```", README, flags=re.DOTALL).group(1)
    parent, named = "", set()
    for line in tree.splitlines():
        name = line.split()[0]
        path = name if line[0] != " " else parent + name
        parent = name if line[0] != " " else parent
        assert list(ROOT.glob(path)), path
        named.add(path.rstrip("/"))
    tracked = {path.relative_to(ROOT).parts[0] for path in tracked_files() if path.parent != ROOT}
    assert {name for name in tracked if name[0] != "."} <= named


def test_readmes_commands_run():
    """As far as reading their arguments: `--help` after each answers what the command accepts."""
    commands = re.findall(r"^python (-m (?:toytransformer|figures) .*?)(?:  |$)", README, flags=re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command.split(), "--help"], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, (command, done.stderr)


def test_documents_that_are_cited_hold_what_is_cited():
    cited = {"theory.md": set(), "merging.md": set()}
    pattern = re.compile(r"(theory|merging)\.md,? +(R\d|P\d|\d[ab]|section \d|fact \d)")
    for path in (ROOT / "toytransformer").rglob("*.py"):
        for document, place in pattern.findall(path.read_text()):
            cited[f"{document}.md"].add(place)
    theory, merging = ((ROOT / "docs" / name).read_text() for name in cited)
    for place in cited["theory.md"]:
        heading = place.removeprefix("section ")
        assert re.search(rf"^(## {heading}\.|### {heading}\.|- \*\*{heading}[.*])", theory, re.MULTILINE), (
            place
        )
    for place in cited["merging.md"]:
        assert re.search(rf"^{place.removeprefix('fact ')}\. ", merging, re.MULTILINE), place
    from toytransformer.merging import RULES

    assert [name for name in RULES if f"`{name}`" not in merging] == []


@pytest.mark.parametrize(
    "module, absent",
    [
        ("toytransformer", ["torch", "jax"]),
        ("toytransformer.compositions", ["torch", "jax", "numpy"]),
        ("figures", ["torch", "matplotlib"]),
    ],
)
def test_import_stays_light(module, absent):
    code = f"import sys, {module}; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_theory_never_names_torch():
    pattern = re.compile(r"^\s*(import|from) torch\b", flags=re.MULTILINE)
    assert [
        path.name for path in (ROOT / "toytransformer").rglob("*.py") if pattern.search(path.read_text())
    ] == []


def test_installed_version_is_the_declared_one():
    assert version(PROJECT["name"]) == PROJECT["version"]


def test_every_requirement_has_a_tested_pin_within_its_range():
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    pins = {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines if line)}
    extras = PROJECT["optional-dependencies"]
    chosen = (extras[name] for name in extras)
    requirements = [*PROJECT["dependencies"], *(each for extra in chosen for each in extra)]
    for requirement in map(Requirement, requirements):
        if requirement.name == PROJECT["name"]:  # one extra within another
            continue
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_no_tracked_file_names_a_machines_folder():
    pattern = re.compile(r"(?<![\w.\-/])/(?:work|root|tmp|home)/\w")
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]
    assert found == []


def test_a_hypothesis_profile_of_ours_is_loaded():
    assert settings().deadline is None
    assert settings().max_examples in (25, 500)
