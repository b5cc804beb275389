"""The measurements' commands under random and mutated command lines, folders of adapters and files."""

import itertools
import json
import random
import shutil

import numpy as np
import pytest
import torch
from hostile import call, command_lines, fault, mutated_json, mutated_text

from llm_experiments import __main__ as measurements
from llm_experiments.adapters import peft_files
from toytransformer.adapters import LoRA
from toytransformer.merging import RULES

#: What trains for minutes, or writes beside the code where it is not told another place.
SKIP = ("run", "pretrain", "keep", "migrate", "rescore", "results")
LAYERS = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")
CONFIG = "adapter_config.json"


def adapters(folder, rng):
    """Two adapters that fit together, and others whose configuration or weights were tampered with."""
    numbers = np.random.default_rng(0)

    def factor(size):
        return torch.tensor(numbers.normal(size=(size, 2)), dtype=torch.float32)

    for name in ("one", "two"):
        peft_files.write(folder / name, name, {layer: LoRA(factor(6), factor(4)) for layer in LAYERS}, "base")
    config = json.loads((folder / "one" / CONFIG).read_text())
    broken = []
    for number in range(8):
        broken.append(folder / f"broken-{number}")
        shutil.copytree(folder / "one", broken[-1], dirs_exist_ok=True)
        text = json.dumps(mutated_json(config, rng))
        (broken[-1] / CONFIG).write_text(text if number % 2 else mutated_text(text, rng), errors="ignore")
    (broken[0] / CONFIG).write_text("[" * 100_000)
    (broken[1] / CONFIG).unlink()
    weights = next(broken[2].glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-7])
    next(broken[3].glob("*.safetensors")).write_bytes(b"\xff" * 100)
    return [str(path) for path in (folder / "one", folder / "two", folder / "one", folder / "two", *broken)]


def thrown(count, seed, folder):
    rng = random.Random(seed)
    words = {
        "adapters": adapters(folder, rng),
        "rule": [*RULES, "nosuch"],
        "weights": ["0.5,0.5", "1,-1", "1", "nan,0", "1e100,1e100", ""],
        "options": ["density=0.5", "rank=1", "seed=1", "form=free", "density=0", "sign=total", "inner=sum"],
        "out": [str(folder / "new"), str(folder / "one"), str(folder / "a-folder"), str(folder / "empty")],
        "triplets": ["3", "5", "0", "2", str(10**9), "9" * 400],
        "seeds": ["0", "0,1", "", "0,0", "-1", "x"],
    }
    skip = (*SKIP, "--count")  # which plans every experiment: a minute
    lines = command_lines(measurements.cli, rng, folder, words, skip)
    outcomes = (call(measurements.main, line, seconds=60) for line in itertools.islice(lines, count))
    found = [(fault(outcome), outcome) for outcome in outcomes]
    return [f"{what}: {repr(o.arguments)[:600]}\n{o.err[-600:]}" for what, o in found if what]


def test_a_sample_of_command_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not (found := thrown(60, 0, tmp_path)), "\n\n".join(found[:8])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_three_thousand_command_lines(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    assert not (found := thrown(300, seed, tmp_path)), "\n\n".join(found[:8])
