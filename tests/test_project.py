"""The README's commands exist, imports stay light, versions agree, no file names one machine's folders."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from hypothesis import settings
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from toytransformer.ledger import Row

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


def test_the_tree_is_the_repositorys():
    page = (ROOT / "docs" / "code.md").read_text()
    tree = re.search(r"```\n(lora_limits.py .*?)```", page, flags=re.DOTALL).group(1)
    parent, named = "", set()
    for line in tree.splitlines():
        name = line.split()[0]
        path = name if line[0] != " " else parent + name
        parent = name if line[0] != " " else parent
        assert list(ROOT.glob(path)), path
        named.add(path.rstrip("/"))
    tracked = {path.relative_to(ROOT).parts[0] for path in tracked_files() if path.parent != ROOT}
    assert {name for name in tracked if name[0] != "."} <= named
    packages = {
        path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("llm_experiments/*/__init__.py")
    }
    assert packages <= named


def test_readmes_first_screen_is_short():
    assert len(README.splitlines()) < 150
    assert README.partition("\n## ")[0].count("![") == 1


def test_commands_of_the_pages_run():
    """As far as reading their arguments: `--help` after each answers what the command accepts."""
    pages = [README, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"^```sh\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    ]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = {
        line.partition("  #")[0].strip() for line in lines if line.startswith(("lora-limits", "python -m"))
    }
    assert len(found) >= 6
    assert {command.split()[1] for command in found} >= {"predict", "verify", "check", "merge", "run"}
    for command in sorted(found):
        program, *arguments = command.split()
        program = ["-m", "lora_limits"] if program == "lora-limits" else []
        done = subprocess.run(
            [sys.executable, *program, *arguments, "--help"], capture_output=True, text=True, cwd=ROOT
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


#: Extras that `make setup` does not install: of these programs whoever uses them has a version.
OTHERS = ("inspect", "lm-eval", "ray")


def test_every_requirement_has_a_tested_pin_within_its_range():
    lines = (
        re.split("[#;]", line)[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()
    )
    pins = {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines if line)}
    extras = PROJECT["optional-dependencies"]
    chosen = (extras[name] for name in extras if name not in OTHERS)
    requirements = [*PROJECT["dependencies"], *(each for extra in chosen for each in extra)]
    for requirement in map(Requirement, requirements):
        if requirement.name == PROJECT["name"]:  # one extra within another
            continue
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_whatever_the_requirements_bring_in_is_pinned():
    """Followed through what is installed, as pip does; torch brings in what its build needs."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(line.partition("==")[0]) for line in lines if re.match(r"\w", line)}
    extras = f"[{','.join(name for name in PROJECT['optional-dependencies'] if name not in OTHERS)}]"
    pending, seen = [Requirement(PROJECT["name"] + extras)], set()
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen or name == "torch":
            continue
        seen.add(key)
        for line in distribution(name).requires or ():
            needed = Requirement(line)
            environments = [{"extra": extra} for extra in (*requirement.extras, "")]
            if needed.marker is None or any(map(needed.marker.evaluate, environments)):
                pending.append(needed)
    brought = {name for name, _ in seen} - {canonicalize_name(PROJECT["name"])}
    assert len(brought) > 100 and brought <= pins


def test_the_lock_has_hashes_of_every_pin_but_torch():
    text = (ROOT / "requirements.lock").read_text()
    releases = re.split(r"\n(?=\S)", text)
    locked = {
        release.split()[0].strip(";").replace("_", "-"): release.count("--hash=sha256:")
        for release in releases
    }
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    releases = (line.partition(";")[0] for line in lines if re.match(r"(?!torch==)\w", line))
    pins = {release.replace("_", "-") for release in releases}
    assert locked.keys() == pins and all(locked.values())


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


# ---- what an install holds ----

PACKAGED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]


def test_every_package_and_every_file_of_one_is_installed():
    """The wheel leaves out what git ignores, and all that is not listed."""
    imported = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {
        "benchmarks",
        "notebooks",
        "tests",
    }
    assert imported | {"lora_limits.py"} == set(PACKAGED["only-include"])
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-i", "-c", "--exclude-standard"], capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert listed.stdout == ""


@pytest.mark.slow
def test_an_install_works_outside_the_checkout(tmp_path):
    """Built as `pip install .` builds it, with the dependencies of this environment, in an empty folder."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], capture_output=True, check=True)
    (tmp_path / "source").mkdir()
    subprocess.run(["tar", "x", "-C", str(tmp_path / "source")], input=archive.stdout, check=True)

    def run(*command, **options):
        done = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            cwd=tmp_path / "empty",
            timeout=900,
            **options,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    (tmp_path / "empty").mkdir()
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv)
    run(venv / "bin" / "python", "-m", "pip", "install", "-q", "--no-deps", tmp_path / "source")
    (site,) = (venv / "lib").glob("*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    held = {path.relative_to(site) for path in site.rglob("*") if path.is_file()}
    folders = tuple(f"{name}/" for name in PACKAGED["only-include"])
    tracked = (path.relative_to(ROOT) for path in tracked_files())
    assert [path for path in tracked if str(path).startswith(folders) and path not in held] == []

    limits, environment = venv / "bin" / "lora-limits", {"PATH": os.environ["PATH"], "COLUMNS": "200"}
    assert "bridge" in run(limits, "predict", "two-hop", "--fresh", env=environment)
    assert "two-hop" in run(limits, "list", env=environment)
    assert "embedded" in run(limits, "experiments", env=environment)
    assert "Usage" in run(limits, "verify", "--help", env=environment)
    for name in ("first-look", "survival"):
        run(limits, "figures", name, "--format", "svg", env=environment)
    assert "1 of them now" in run(limits, *["run", "quick", "--seeds", "0", "--limit", "1"], env=environment)
    check = Row("a claim", "eq. 1", "limit", 1.0, 1.0, 0.0, "exact", "holds")
    line = {**check.to_dict(), "provenance": {"git": "unknown", "seed": 0, "thorough": False}}
    (tmp_path / "empty" / "ledger.json").write_text(json.dumps([line]))
    assert "report in" in run(limits, "report", "--ledger", "ledger.json", env=environment)
    files = {path.name for path in (tmp_path / "empty").rglob("*")}
    assert {"first-look.svg", "survival.svg", "report.html"} <= files


# ---- make: the values of its variables are data ----

STAND_IN = """#!/bin/sh
for argument in "$@"; do printf '%s\\n' "$argument"; done >> calls
echo >> calls
"""


@pytest.fixture
def reproduce(tmp_path):
    """`make reproduce` with a stand-in for Python that only notes its arguments: (process, calls)."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "requirements.lock"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    (tmp_path / ".venv" / ".ready").touch()
    (tmp_path / "out").mkdir()
    for name in ("ledger.json", "theory_rows.json"):
        (tmp_path / "out" / name).write_text("[]")

    def call(*variables, **environment):
        done = subprocess.run(
            ["make", "reproduce", *variables],
            **{"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 60},
            env={"PATH": os.environ["PATH"], **environment},
        )
        calls = tmp_path / "calls"
        noted = calls.read_text().split("\n\n") if calls.exists() else []
        calls.unlink(missing_ok=True)
        return done, [each.splitlines() for each in noted if each.strip()]

    return call


@pytest.mark.parametrize(
    "variables, arguments, folder",
    [
        ((), ["--model", "embedded", "--device", "cpu", "--seeds", "0", "quick"], "embedded"),
        (
            ("MODEL=org/a-model_7B.v2", "EXPERIMENTS=quick table1", "SEEDS=0,1", "PROFILE=small"),
            [
                *("--model", "org/a-model_7B.v2", "--device", "auto", "--seeds", "0,1"),
                "--profile",
                "small",
                "table1",
            ],
            "org:a-model_7B.v2,small",
        ),
        (("MODEL=~/models/x.gguf",), ["~/models/x.gguf", "table1", "survival"], "~:models:x.gguf"),
    ],
    ids=["defaults", "all", "folder"],
)
def test_make_reproduce_hands_its_variables_on(reproduce, variables, arguments, folder):
    done, calls = reproduce(*variables)
    assert done.returncode == 0, done.stderr
    (run,) = (call for call in calls if call[:3] == ["-m", "llm_experiments", "run"])
    assert set(arguments) <= set(run) and f"out/reproduce/{folder}" in run
    assert run.index("--") < run.index(arguments[-1])


HOSTILE = [
    *(
        "a';touch hit;'",
        '";touch hit;"',
        "`touch hit`",
        "a;touch hit;true",
        "a|touch hit",
        "a&touch hit&",
        "a>hit",
    ),
    *(
        "$(shell touch hit)",
        "$$(touch hit)",
        "${shell touch hit}",
        "$(error x)",
        "$(MAKEFILE_LIST)",
        "a\ntouch hit",
    ),
    *("a\\' touch hit", "#", "*", "é", "\x1b[31m"),
]


@pytest.mark.parametrize("name", ["MODEL", "EXPERIMENTS", "SEEDS", "PROFILE"])
@pytest.mark.parametrize("value", HOSTILE)
def test_make_variables_never_reach_the_shell(reproduce, tmp_path, name, value):
    for done, calls in (reproduce(f"{name}={value}"), reproduce(**{name: value})):
        assert done.returncode == 2 and calls == [], (done.stdout, calls)
        assert re.match(f"error: {name} is '.*': give .*\nmake: ", done.stderr), done.stderr
        assert "\x1b" not in done.stderr
        assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("value", [".", ".."])
def test_a_model_is_no_folder_above_its_results(reproduce, value):
    """out/reproduce/.. would be out itself."""
    done, calls = reproduce(f"MODEL={value}")
    assert done.returncode == 2 and calls == [] and "error: MODEL is" in done.stderr
