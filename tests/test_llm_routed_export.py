"""A routed merge as a folder: PEFT's Arrow and the code beside it load it, and the logits are ours."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import click.testing
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import mlp_factors, tiny_model, tiny_qwen2

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.adapters.weights import ModuleUpdate
from llm_experiments.commands.adapters import merge
from llm_experiments.merges.merging import apply, merge_modules
from llm_experiments.merges.routed_export import routed_adapters
from llm_experiments.models.load import load
from llm_experiments.models.shapes import base_shapes
from toytransformer.adapters import LoRA
from toytransformer.compositions import Merge
from toytransformer.merging import RuleError

IDS = list(range(20, 44))
#: Algebraic: a shift in float32, added in another order in two layers.
SINGLE = 2**12 * torch.finfo(torch.float32).eps
RANK = 3
#: Fifteen of PEFT's power iterations leave ratio^30 of the second direction.
RATIO = 1 / 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_qwen2(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def loaded(base):
    return load(str(base), dtype="float32", device="cpu")


def gapped(loaded, seed, ratio=RATIO, rank=RANK, ends=("_proj",)):
    """Factors whose singular values fall by a ratio."""
    found = {}
    for name, lora in mlp_factors(loaded.model, seed, rank=rank).items():
        if name.endswith(ends):
            left, _, right = lora.svd()
            found[name] = LoRA(left * (3 * ratio ** torch.arange(rank)), right)
    return found


def written(folder, loaded, base, libraries):
    for name, modules in libraries.items():
        peft_files.write(folder / name, name, modules, str(base), alpha=2 * RANK)
    return [folder / name for name in libraries]


def called(*arguments):
    done = click.testing.CliRunner().invoke(merge, list(map(str, arguments)), standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.output


def ours(loaded, sources, spec):
    library = [peft_files.read(source) for source in sources]
    with torch.no_grad(), apply(loaded, library, spec):
        return loaded.model(torch.tensor([IDS])).logits[0]


#: Runs Python from README.md, each block in its folder, without this project; writes the logits of each.
RUNNER = """
import json, os, sys, torch
for folder, blocks in json.loads(sys.argv[1]):
    os.chdir(folder)
    sys.modules.pop("routed", None)
    for place, block in enumerate(blocks):
        said = {}
        exec(block, said)
        with torch.no_grad():
            torch.save(said["model"](torch.tensor([json.loads(sys.argv[2])])).logits[0], f"logits-{place}.pt")
assert not any(name.partition(".")[0] in ("llm_experiments", "toytransformer") for name in sys.modules)
"""


def blocks(folder):
    """The Python of README.md: for torch and transformers, and for PEFT."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def close(found, wanted):
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= SINGLE


ROUTED = {
    "soft": Merge("arrow-products", options={"temperature": 0.4}),
    "top-2": Merge("arrow-products", options={"temperature": 0.4, "top_k": 2}),
    "width": Merge("arrow-products", options={"temperature": 0.1, "temperature_scaling": "sqrt-width"}),
    "factors": Merge("arrow-factors", options={"temperature": 0.7}),
    "absent": Merge("arrow-products", options={"temperature": 0.4, "top_k": 3}),
    "ranks": Merge("arrow-products", options={"temperature": 0.4}),
}
#: Those that PEFT's Arrow can do.
WITH_PEFT = {"soft", "top-2", "ranks"}


@pytest.fixture(scope="module")
def exported(base, loaded, tmp_path_factory):
    """By case: what was said, the sources, the folder, the logits of each block of its README."""
    place = tmp_path_factory.mktemp("exported")
    same = written(place, loaded, base, {f"a{seed}": gapped(loaded, seed) for seed in range(3)})
    more = {"wide": gapped(loaded, 1, rank=5), "up": gapped(loaded, 2, ends=("up_proj",))}
    wide, up = written(place, loaded, base, more)
    found = {}
    for name, spec in ROUTED.items():
        sources = {"absent": [same[0], wide, up], "ranks": [same[0], wide]}.get(name, same)
        options = [part for key, value in spec.option_dict.items() for part in ("--option", f"{key}={value}")]
        said = called(*sources, "--rule", spec.rule, *options, "--out", place / name, "--model", base)
        found[name] = said, sources, place / name
    jobs = [(str(folder), blocks(folder)) for _, _, folder in found.values()]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", "import sys; sys.path.insert(0, '')\n" + RUNNER]
    command += [json.dumps(jobs), json.dumps(IDS)]
    ran = subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    return {
        name: (*of, [torch.load(path, weights_only=True) for path in sorted(of[2].glob("logits-*.pt"))])
        for name, of in found.items()
    }


@pytest.mark.parametrize("name", ROUTED)
def test_a_fresh_process_computes_what_is_computed_here(loaded, exported, name):
    said, sources, _, (own, *with_peft) = exported[name]
    wanted = ours(loaded, sources, ROUTED[name])
    plain = ours(loaded, sources, Merge("mean"))
    assert float((wanted - plain).abs().max()) > 0.01 * float(wanted.abs().max())  # it routes
    close(own, wanted)
    assert ("PEFT's Arrow loads it" in said) == (name in WITH_PEFT) == bool(with_peft)
    for peft in with_peft:
        # what fifteen iterations leave of prototypes moves logits by no more than rounding does
        assert float(re.search(r"within (\S+) of the exact", said)[1]) <= 100 * RATIO**30 + 2**6 * 1.2e-7
        close(peft, wanted)


def test_what_pefts_arrow_cannot_do_is_said(exported):
    assert "wants adapters of the same layers, and 'up' does not change" in exported["absent"][0]
    assert "one temperature for all layers, and here it grows with their width" in exported["width"][0]
    assert "it mixes products, and this rule factors" in exported["factors"][0]


def test_layers_that_peft_would_route_in_too_are_seen(base, loaded, tmp_path):
    lower = {name: lora for name, lora in gapped(loaded, 0).items() if ".0." in name}
    library = [AdapterWeights(name, lower) for name in ("a", "b")]
    spec = Merge("arrow-products")
    assert routed_adapters(library, spec).unlike_peft is None  # without the base nobody can tell
    told = routed_adapters(library, spec, base=base_shapes(str(base))).unlike_peft
    assert re.fullmatch(r"it routes in every layer called (\w+), model\.layers\.1\.mlp\.\1 too", told)


def test_the_folder_says_what_it_is(base, loaded, tmp_path):
    hostile = "x](evil) `rm`\n# y"
    library = [AdapterWeights(name, gapped(loaded, n, ratio=0.99)) for n, name in enumerate((hostile, "b"))]
    for one in library:
        peft_files.write(tmp_path / str(len(one.name)), one.name, one.modules, str(base))
    sources = [tmp_path / str(len(one.name)) for one in library]
    said = called(*sources, "--rule", "arrow-products", "--dtype", "bfloat16", "--out", tmp_path / "out")
    # at a ratio of 0.99 PEFT's start is not forgotten, and that is said
    assert float(re.search(r"within (\S+) of the exact", said)[1]) > 0.05
    told = json.loads((tmp_path / "out" / "routed.json").read_text())
    assert told["names"] == [hostile, "b"] and told["rule"] == "arrow-products" and not told["factor_wise"]
    prototypes = load_file(tmp_path / "out" / "prototypes.safetensors")
    read = [peft_files.read(source) for source in sources]
    for name, merged in merge_modules(read, Merge("arrow-products")).items():
        along = (prototypes[name].double() * merged.prototypes.double()).sum(dim=1).abs()
        assert torch.all(1 - along <= SINGLE)
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert {"routed.py", "README.md", "adapters/0/adapter_model.safetensors"} <= files
    kept = peft_files.read(tmp_path / "out" / "adapters" / "1")
    assert kept.name == "b" and kept.modules.keys() == library[1].modules.keys()
    tensor = next(iter(load_file(tmp_path / "out" / "adapters" / "1" / peft_files.WEIGHTS).values()))
    assert tensor.dtype == torch.bfloat16
    card = (tmp_path / "out" / "README.md").read_text()
    assert "](evil)" not in card.replace("\\]", "") and "\n# y" not in card


def test_what_cannot_be_routed_from_files_is_refused(base, loaded, tmp_path):
    library = [AdapterWeights(name, gapped(loaded, n)) for n, name in enumerate("ab")]
    name = next(iter(library[0].modules))
    tokens = {"model.embed_tokens": ModuleUpdate(torch.ones(32, 2), torch.ones(384, 2), kind="embedding")}
    with pytest.raises(RuleError, match=r"'a' changes model\.embed_tokens, which is no linear layer's"):
        routed_adapters([replace(one, modules=tokens) for one in library], Merge("arrow-products"))
    zero = {**library[0].modules, name: LoRA(torch.zeros(64, 2), torch.ones(32, 2))}
    if library[0].modules[name].read.shape[0] != 32:
        zero[name] = LoRA(torch.zeros(32, 2), torch.ones(64, 2))
    with pytest.raises(RuleError, match="no Arrow prototype"):
        routed_adapters([replace(library[0], modules=zero), library[1]], Merge("arrow-products"))
    sources = written(tmp_path, loaded, base, {one.name: one.modules for one in library})
    common = (*sources, "--rule", "arrow-products", "--out", tmp_path / "out")
    with pytest.raises(click.UsageError, match="keeps every adapter as it is: leave out --rank"):
        called(*common, "--rank", "4")
    with pytest.raises(RuleError, match="sets its own weights"):
        called(*common, "--weights", "1,2")
    with pytest.raises(RuleError, match="top_k is 3 but there are 2 adapters"):
        called(*common, "--option", "top_k=3")
    wide = tiny_model(tmp_path / "wide", "qwen2", hidden=64, intermediate=96)
    with pytest.raises(ValueError, match="has other shapes"):
        called(*common, "--model", wide)
    assert not (tmp_path / "out").exists()
