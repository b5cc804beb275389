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
    requirements = [*PROJECT["dependencies"], *extras["figures"], *extras["test"], *extras["dev"]]
    for requirement in map(Requirement, requirements):
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
