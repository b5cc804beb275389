"""Who imports whom, read off the sources: one arrow between packages, no circles, no private names."""

import ast
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Each package may import those before it.
ARROW = ("toytransformer", "results", "predictors", "llm_experiments", "figures")
PACKAGES = (*ARROW, "benchmarks", "notebooks")


def sources():
    """Every module by name, with its file and its syntax tree."""
    files = [ROOT / "lora_limits.py", *(file for name in PACKAGES for file in (ROOT / name).rglob("*.py"))]
    for file in sorted(files):
        *parts, last = file.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts if last == "__init__" else [*parts, last]), file, ast.parse(file.read_text())


def imported(name, file, tree, modules):
    """Modules of ours that a module imports anywhere: in functions and for type checkers alone, too."""
    inside = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & modules
        elif isinstance(node, ast.ImportFrom):
            above = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield from {full if full in modules else base} & modules


@pytest.fixture(scope="module")
def graph():
    modules = {name for name, _, _ in sources()}
    edges = {name: set(imported(name, file, tree, modules)) - {name} for name, file, tree in sources()}
    assert len(modules) > 150
    return edges


def test_no_module_imports_itself_by_way_of_others(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_packages_import_those_below_only(graph):
    upward = [
        f"{name} imports {module}"
        for name, modules in graph.items()
        for module in modules
        if (package := name.partition(".")[0]) in ARROW
        and module.partition(".")[0] not in ARROW[: ARROW.index(package) + 1]
    ]
    assert not upward, "\n".join(upward)


def test_the_arrow_is_used_all_the_way(graph):
    packages = {(a.partition(".")[0], b.partition(".")[0]) for a, modules in graph.items() for b in modules}
    # predictors are for whoever compares, not for whoever measures
    measuring = [name for name in ARROW if name != "predictors"]
    assert {(above, below) for below, above in pairwise(measuring)} <= packages
    assert {("predictors", "results"), ("figures", "predictors")} <= packages


def test_what_lies_below_language_models_imports_no_library_of_theirs():
    for name, _, tree in sources():
        if name.partition(".")[0] not in ("toytransformer", "results", "predictors"):
            continue
        roots = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        roots |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        assert not {root.partition(".")[0] for root in roots} & {"torch", "transformers", "peft"}, name


def private_names(tree):
    """Names with an underscore that a file takes from modules of ours: by import, attribute, monkeypatch."""
    aliases = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
            for alias in node.names:
                aliases.add(alias.asname or alias.name)
                if alias.name.startswith("_") and not alias.name.startswith("__"):
                    yield alias.name
        elif isinstance(node, ast.Import):
            ours = (alias for alias in node.names if alias.name.partition(".")[0] in PACKAGES)
            aliases |= {alias.asname or alias.name.partition(".")[0] for alias in ours}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in aliases:
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "getattr")):
            owner, *rest = node.args
            named = [a.value for a in rest[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            private = any(n.startswith("_") and not n.startswith("__") for n in named)
            if private and ast.unparse(owner).partition(".")[0] in aliases:
                yield f"{ast.unparse(owner)}.{named[0]}"


def test_nobody_reaches_for_private_names_of_a_module():
    trees = {file: tree for _, file, tree in sources()}
    trees |= {file: ast.parse(file.read_text()) for file in (ROOT / "tests").glob("*.py")}
    reached = {
        file.relative_to(ROOT).as_posix(): sorted(set(private_names(tree))) for file, tree in trees.items()
    }
    assert not (reached := {file: names for file, names in reached.items() if names}), reached


def test_private_names_are_seen():
    code = (
        "from toytransformer import prediction as p\nfrom results.rows import _x\np.q._y\nsetattr(p, '_z', 1)"
    )
    assert sorted(private_names(ast.parse(code))) == ["_x", "p._z", "p.q._y"]
