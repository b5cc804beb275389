"""The check of the proofs can fail: on an assumption, a missing headline, an axiom that is not allowed."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

PROOFS = Path(__file__).resolve().parents[1] / "proofs"
spec = importlib.util.spec_from_file_location("proofs_check", PROOFS / "check.py")
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

PROVED = "Theorem two : 1 + 1 = 2.\nProof. reflexivity. Qed.\n"


def development(folder: Path, text: str, headline: str = "Tiny.two") -> Path:
    """A development of one file, Tiny.v."""
    (folder / "theories").mkdir()
    (folder / "theories" / "Tiny.v").write_text(text)
    (folder / "headlines.txt").write_text(f"# the one\n{headline}\n")
    (folder / "_CoqProject").write_text("-Q theories LoRA\ntheories/Tiny.v\n")
    return folder


def test_nothing_is_assumed_in_the_proofs_and_every_headline_is_there():
    assert check.in_text() == []
    assert len(check.headlines()) > 40


def test_a_proved_theorem_passes(tmp_path):
    assert check.in_text(development(tmp_path, PROVED)) == []


@pytest.mark.parametrize(
    "text",
    [
        "Theorem two : 1 + 1 = 2.\nProof. Admitted.\n",
        "Theorem two : 1 + 1 = 2.\nProof. admit. Qed.\n",
        "Theorem two : 1 + 1 = 2.\nProof. give_up. Qed.\n",
        "Theorem two : 1 + 1 = 2.\nAbort.\n",
        PROVED + "Axiom free : False.\n",
        PROVED + "Parameter free : False.\n",
        PROVED + "Conjecture free : False.\n",
        PROVED + "Variable free : False.\n",
        "Section S.\nVariable n : nat.\nEnd S.\nHypothesis free : False.\n" + PROVED,
        PROVED + "Unset Guard Checking.\n",
    ],
)
def test_an_assumption_is_found_in_the_text(text, tmp_path):
    (problem,) = check.in_text(development(tmp_path, text))
    assert problem.startswith("Tiny.v:")


@pytest.mark.parametrize(
    "text",
    [
        PROVED + "(* nothing is Admitted (* no Axiom *) here *)\n",
        'Definition word := "Admitted".\n' + PROVED,
        "Section S.\nVariable n : nat.\nHypothesis h : n = n.\n" + PROVED + "End S.\n",
    ],
)
def test_comments_strings_and_sections_assume_nothing(text, tmp_path):
    assert check.in_text(development(tmp_path, text)) == []


def test_a_missing_headline_is_found(tmp_path):
    assert "Tiny.three" in check.in_text(development(tmp_path, PROVED, "Tiny.three"))[0]


def test_a_headline_inside_a_comment_is_missing(tmp_path):
    assert "Tiny.two" in check.in_text(development(tmp_path, f"(* {PROVED} *)"))[0]


def test_a_file_that_is_not_built_is_found(tmp_path):
    root = development(tmp_path, PROVED)
    (root / "theories" / "Other.v").write_text(PROVED)
    assert "Other.v" in check.in_text(root)[0]


def test_axioms_are_read_from_what_coq_prints():
    printed = (
        "Axioms:\nUint63.add_spec\n  : forall x y : int,\n    x = y\n"
        "Classical_Prop.classic : forall P : Prop, P \\/ ~ P\n"
    )
    assert check.axioms("T.t", printed) == ["Uint63.add_spec", "Classical_Prop.classic"]
    assert check.axioms("T.t", "Closed under the global context\n") == []
    with pytest.raises(ValueError, match=r"T\.t"):
        check.axioms("T.t", "Error: no such thing")


def test_axioms_are_allowed_by_name_and_file():
    assert check.allowed("Answers.t", "Classical_Prop.classic")
    assert not check.allowed("Answers.t", "PrimInt63.add")
    assert check.allowed("AngularIntegral.t", "PrimInt63.add")
    assert not check.allowed("AngularIntegral.t", "Epsilon.epsilon_statement")
    assert not check.allowed("WideLimit.t", "Tiny.free")


@pytest.mark.skipif(shutil.which("coqc") is None, reason="needs Coq (see `make proofs`)")
def test_an_axiom_of_a_library_is_found_by_coq(tmp_path, monkeypatch):
    """The text assumes nothing, yet the theorem rests on the library's axiom."""
    text = (
        "Require Import Classical.\n"
        "Theorem either (P : Prop) : P \\/ ~ P.\nProof. apply classic. Qed.\n" + PROVED
    )
    root = development(tmp_path, text, "Tiny.either\nTiny.two")
    build = ["coqc", "-q", "-Q", "theories", "LoRA", "theories/Tiny.v"]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    assert check.in_text(root) == []
    assert check.with_coq(root) == []
    monkeypatch.setattr(check, "CLASSICAL_REALS", ())
    assert check.with_coq(root) == ["Tiny.either rests on the axiom Classical_Prop.classic"]
