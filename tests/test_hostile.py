"""Whatever is typed or read, a command ends in time with 0, 1 or 2, and says in one line what it refuses."""

import itertools
import json
import random

import pytest
from hostile import call, command_lines, documents, fault

from toytransformer import __main__ as toy
from toytransformer import ledger
from toytransformer.compositions import Composition, Merge, Record, SpecError, catalogue, setups
from toytransformer.merging import RULES, RuleError
from toytransformer.prediction import predict
from toytransformer.regimes import FullLimit

WORDS = {
    "name": (*catalogue.names(), "two-hop", "two-hop", "nosuch"),
    "facts": ("1", "2", "3", "5", "0", str(10**7), str(2**53), "10" * 40),
    "library": ("hop1,hop2", "hop1", "hop1,hop2,oracle", "hop1,hop1", "hop1,,hop2", "Rel1,Rel2", ""),
    "rule": (*RULES, "sum", "sum", "nosuch"),
    "weights": ("0.5,0.5", "1,-3", "1e100,1e100", "1e101,1", "nan,1", "1", "1,1,1", "0,0", "1e-320,1"),
    "options": (
        *("density=0.5", "density=0", "density=1e-300", "sign=frequency", "seed=3", "seed=-1", "rank=1"),
        *("temperature=1e-300", "temperature=1e99", "top_k=1", "top_k=99", "temperature_scaling=sqrt-width"),
        *("f=tanh", "form=free", "penalty=1e100", "bound=1e100", "bound=1e-300", "combine=linear"),
        *("inner=sum", f"seed={10**400}", "density=[1]", "density=" + "[" * 9000, "density=1e999", "=1"),
    ),
    "gauge": ("svd", "facts", "flipped", "random:1", "random:", "random:-1", f"random:{10**300}", "plain"),
    "rank": ("1", "2", "5", "0", "-1", str(2**40), str(2**70)),
    "examples": ("0", "1", "2", "3", "-1", str(10**9)),
    "dimension": ("1", "2", "16", "0", "-1", str(10**9), str(2**70)),
    "width": ("1", "2", "64", "512", "0", str(2**31), str(2**70)),
    "mask": ("strict", "causal", "causal-printed", "none"),
    "attention": ("uniform", "softmax", "none"),
    "seed": ("0", "1", "-1", str(2**31 - 1), str(2**31), str(2**70)),
}


@pytest.fixture
def no_ledger(monkeypatch):
    """`verify` without the minutes that the checks take."""
    monkeypatch.setattr(ledger, "verify", lambda run, jobs: itertools.islice(iter([]), 0))


def faults(outcomes):
    found = [(fault(outcome), outcome) for outcome in outcomes]
    return [f"{what}: {repr(o.arguments)[:1000]}\n{o.err[-1000:]}" for what, o in found if what]


def thrown_at_the_toy(count, seed, folder):
    lines = command_lines(toy.cli, random.Random(seed), folder, WORDS)
    return faults(call(toy.main, line, seconds=60) for line in itertools.islice(lines, count))


def test_a_sample_of_command_lines(no_ledger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not (found := thrown_at_the_toy(120, 0, tmp_path)), "\n\n".join(found[:5])


@pytest.mark.parametrize(
    "line, word",
    [
        ("other-entity --facts 9007199254740992 --known --merge sum-truncated --layers 1,2", "needs about"),
        ("coincident --examples 1000000000 --layers 1,2", "needs about"),
        ("two-hop --facts 9007199254740992 --layers =", "whole numbers"),
    ],
)
def test_a_stack_is_refused_before_it_is_built(line, word):
    """What is too large says so at once, with --layers as without."""
    outcome = call(toy.main, ["predict", *line.split()], seconds=30)
    assert fault(outcome) is None and outcome.status == 2 and word in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_ten_thousand_command_lines(no_ledger, tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    assert not (found := thrown_at_the_toy(500, seed, tmp_path)), "\n\n".join(found[:5])


def refused_or_read(text, read):
    """Reading a text gives a value that is written as it was, or a refusal in words."""
    try:
        value = read(text)
    except SpecError as error:
        assert len(str(error)) > 10
        return None
    assert read(value.to_json()) == value
    return value


def thrown_at_the_specs(count, seed):
    small = [catalogue.build(name, facts=2, merge=Merge("arrow-products")) for name in catalogue.names()]
    small += [
        catalogue.build("two-hop", facts=2, examples=2, merge=Merge("lorahub", options={"penalty": 0.1}))
    ]
    small += [setups.setup(number, facts=2) for number in setups.SETUPS]
    valid = [json.loads(composition.to_json()) for composition in small]
    for text in itertools.islice(documents(valid, random.Random(seed)), count):
        composition = refused_or_read(text, Composition.from_json)
        if composition is not None and len(composition.prompts) < 60:
            try:
                predict(composition, FullLimit(quadrature=256)).records()
            except (ValueError, MemoryError) as error:
                assert len(str(error)) > 10


def thrown_at_the_records(count, seed):
    rows = [
        json.loads(row.to_json())
        for row in predict(catalogue.build("two-hop", facts=2), FullLimit()).records()
    ]
    for text in itertools.islice(documents(rows, random.Random(seed)), count):
        refused_or_read(text, Record.from_json)


def test_a_sample_of_documents():
    thrown_at_the_specs(150, 0)
    thrown_at_the_records(300, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_ten_thousand_documents(seed):
    thrown_at_the_specs(500, seed)
    thrown_at_the_records(500, seed)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "", "null", "[]", '{"world": 1}', "9" * 5000, '"' + "a" * 10, "NaN"]
)
def test_texts_that_are_no_specs(text):
    for read in (Composition.from_json, Record.from_json):
        with pytest.raises(SpecError, match="not "):
            read(text)


@pytest.mark.parametrize(
    "library", [3, None.__class__, ("hop1", 3), ("hop1", ["hop2"]), [], "hop1", {"hop1"}, ("x",)]
)
def test_libraries_that_are_none(library):
    with pytest.raises(SpecError, match="give a tuple of names among hop1, hop2"):
        catalogue.build("two-hop", library=library)
    with pytest.raises((SpecError, RuleError)):
        setups.setup(0, facts=1, library=library)
