"""Check the proofs: nothing assumed, every headline theorem there, and the axioms each rests on.

    python3 proofs/check.py            # after the build: text, then what Coq says of each headline
    python3 proofs/check.py --text     # the text alone, without Coq

Needs Python's standard library only. Ends with status 1 and one line for each problem.

A headline is a line "File.theorem" of headlines.txt. It may rest on the axioms of Coq's classical real
numbers, and theorems of the files named in `EXTRA` on the few that are listed there with their reason.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent

#: Words by which a file would assume what it should prove.
ASSUMING = re.compile(
    r"\b(Admitted|admit|give_up|Abort|Axioms?|Conjectures?|Parameters?|Unset\s+Guard\s+Checking"
    r"|Unset\s+Positivity\s+Checking|Unset\s+Universe\s+Checking|bypass_check)\b"
)
#: `Hypothesis` and `Variable` are assumptions of a section and become arguments when it ends.
SECTION = re.compile(r"^\s*(Section|End)\s+(\w+)\s*\.", re.MULTILINE)
LOCAL = re.compile(r"^\s*(Hypothes[ie]s|Variables?|Context)\b", re.MULTILINE)
STATEMENT = re.compile(r"^\s*(?:Theorem|Lemma|Corollary|Fact|Proposition)\s+(\w+)", re.MULTILINE)

#: What Coq prints of a theorem that rests on no axiom.
CLOSED = "Closed under the global context"
#: How Coq's standard library builds its real numbers.
CLASSICAL_REALS = (
    "ClassicalDedekindReals.sig_forall_dec",
    "ClassicalDedekindReals.sig_not_dec",
    "FunctionalExtensionality.functional_extensionality_dep",
    "Classical_Prop.classic",
)
#: Machine integers of Coq's kernel, by which coq-interval computes with numbers.
MACHINE_INTEGERS = ("PrimInt63.*", "Uint63.*")
#: Hilbert's choice, by which MathComp sees Coq's real numbers as one of its ordered fields.
CHOICE = ("Epsilon.epsilon_statement",)
#: How MathComp's analysis builds topology, compactness among it: what holds of the same things is the same,
#: and from what exists one can be chosen.
CLASSICAL_SETS = (
    "boolp.propositional_extensionality",
    "boolp.functional_extensionality_dep",
    "boolp.constructive_indefinite_description",
)
EXTRA = {
    "AngularIntegral": MACHINE_INTEGERS,
    "WideLimit": MACHINE_INTEGERS + CHOICE,
    "Existence": CLASSICAL_SETS,
}


def code(text: str) -> str:
    """The text without comments (they nest) and strings; line breaks stay, so line numbers do too."""
    kept, depth, position = [], 0, 0
    for match in re.finditer(r'\(\*|\*\)|"(?:[^"]|"")*"', text):
        token = match.group()
        if depth == 0:
            kept.append(text[position : match.start()])
        inside = text[position : match.end()] if depth else token
        kept.append("\n" * inside.count("\n"))
        position = match.end()
        if token == "(*":
            depth += 1
        elif token == "*)":
            depth = max(0, depth - 1)
    kept.append("" if depth else text[position:])
    return "".join(kept)


def statements(folder: Path = HERE / "theories") -> dict[str, list[str]]:
    """The names of the theorems and lemmas in each file."""
    return {path.stem: STATEMENT.findall(code(path.read_text())) for path in sorted(folder.glob("*.v"))}


def headlines(file: Path = HERE / "headlines.txt") -> list[str]:
    """The lines "File.theorem", without comments (#)."""
    lines = (line.split("#")[0].strip() for line in file.read_text().splitlines())
    return [line for line in lines if line]


def assumed(path: Path) -> Iterator[str]:
    """Every place where the file assumes something instead of proving it."""
    text = code(path.read_text())
    for match in ASSUMING.finditer(text):
        line = text[: match.start()].count("\n") + 1
        yield f"{path.name}:{line}: {match.group()!r} assumes, it does not prove"
    for match in LOCAL.finditer(text):
        opened = [word for word, _ in SECTION.findall(text[: match.start()])]
        if opened.count("Section") <= opened.count("End"):
            line = text[: match.start(1)].count("\n") + 1
            yield f"{path.name}:{line}: {match.group(1)!r} outside a section is an axiom"


def in_text(root: Path = HERE) -> list[str]:
    """What can be seen without Coq: assumptions, missing headlines, files that are not built."""
    theories = root / "theories"
    problems = [problem for path in sorted(theories.glob("*.v")) for problem in assumed(path)]
    found = statements(theories)
    names = headlines(root / "headlines.txt")
    if not names:
        problems.append("headlines.txt names no theorem")
    for name in names:
        file, _, theorem = name.partition(".")
        if theorem not in found.get(file, ()):
            problems.append(f"{name}: no such theorem in {theories.name}/{file}.v")
    problems += [
        f"{name}: named twice in headlines.txt" for name in sorted(set(names)) if names.count(name) > 1
    ]
    project = (root / "_CoqProject").read_text().split()
    built = {line.removeprefix("theories/") for line in project if line.endswith(".v")}
    problems += [
        f"{path.name}: not in _CoqProject, so nobody builds it"
        for path in sorted(theories.glob("*.v"))
        if path.name not in built
    ]
    return problems


def axioms(name: str, printed: str) -> list[str]:
    """The axioms in what `Print Assumptions` printed: each starts a line, its type follows or is indented."""
    if CLOSED in printed:
        return []
    if "Axioms:" not in printed:
        raise ValueError(f"{name}: cannot read what Coq printed: {printed.strip()[:200]!r}")
    after = printed.split("Axioms:", 1)[1]
    return re.findall(r"^([A-Za-z_][\w.']*)(?=\s*:|\s*$)", after, re.MULTILINE)


def allowed(name: str, axiom: str) -> bool:
    patterns = CLASSICAL_REALS + EXTRA.get(name.split(".")[0], ())
    return any(
        axiom.startswith(pattern[:-1]) if pattern.endswith("*") else axiom == pattern for pattern in patterns
    )


def ask_coq(names: list[str], root: Path = HERE) -> dict[str, str]:
    """What `Print Assumptions` prints for each name, from the files already built.

    The theorems of a file are asked together first: if they all rest on nothing, so does each of them. Files
    that are known to rest on axioms are asked theorem by theorem at once.
    """
    files = [file for file in _files(names) if file not in EXTRA]
    together = [[name for name in names if name.startswith(f"{file}.")] for file in files]
    closed = {
        name
        for group, text in zip(together, _printed(together, root), strict=True)
        if CLOSED in text
        for name in group
    }
    rest = [name for name in names if name not in closed]
    apart = dict(zip(rest, _printed([[name] for name in rest], root), strict=True))
    return {name: apart.get(name, CLOSED) for name in names}


def _files(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.split(".")[0] for name in names))


def _printed(groups: list[list[str]], root: Path) -> list[str]:
    """What `Print Assumptions` prints for each group of names: that of all theorems in it."""
    marker = "(* next group *)"
    lines = [f"From LoRA Require {file}." for file in _files([name for group in groups for name in group])]
    for number, group in enumerate(groups):
        pairs = "tt"
        for name in group:
            pairs = f"(@LoRA.{name}, {pairs})"
        lines += [f"Definition group_{number} := {pairs}.", f'Eval compute in "{marker}".']
        lines += [f"Print Assumptions group_{number}."]
    source = "From Coq Require Import String.\nOpen Scope string_scope.\n" + "\n".join(lines) + "\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "Assumptions.v"
        path.write_text(source)
        command = ["coqc", "-q", "-Q", str(root / "theories"), "LoRA", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Coq could not print the axioms: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.split(f'= "{marker}"')[1:]


def summary(found: list[str]) -> str:
    integers = [axiom for axiom in found if axiom.startswith(("PrimInt63.", "Uint63."))]
    names = [axiom.split(".")[-1] for axiom in found if axiom not in integers]
    if integers:
        names.append("Coq's machine integers")
    return ", ".join(names) or "no axioms"


def with_coq(root: Path = HERE) -> list[str]:
    """Print the axioms of every headline; return those that are not allowed."""
    problems = []
    for name, printed in ask_coq(headlines(root / "headlines.txt"), root).items():
        found = axioms(name, printed)
        print(f"  {name}: {summary(found)}")
        problems += [f"{name} rests on the axiom {axiom}" for axiom in found if not allowed(name, axiom)]
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", action="store_true", help="look at the text alone, without Coq")
    only_text = parser.parse_args().text
    problems = in_text()
    if not (problems or only_text):
        print("What each headline theorem rests on, beyond Coq's logic:")
        problems = with_coq()
    for problem in problems:
        print(f"proofs: {problem}", file=sys.stderr)
    if not problems:
        print(f"{len(headlines())} headline theorems, nothing assumed")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
