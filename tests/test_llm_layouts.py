"""Adapters in other people's layouts and places: what each is read as, or what it is said to be."""

import json
import math
from pathlib import Path

import click.testing
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_qwen2

from llm_experiments.adapters import locate, peft_files
from llm_experiments.adapters.compatible import compatibility
from llm_experiments.adapters.of_base import against, resolved
from llm_experiments.adapters.peft_files import AdapterError
from llm_experiments.adapters.peft_settings import scaling
from llm_experiments.commands.adapters import check
from llm_experiments.commands.diagnose import diagnose
from llm_experiments.merges.saving import save_static
from llm_experiments.models.shapes import base_shapes
from toytransformer.adapters import LoRA
from toytransformer.compositions import Merge

MODULES = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")


def pairs(rank=2, seed=0, out=64, inside=32):
    """(lora_A, lora_B) by module."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(rank, inside, generator=generator), torch.randn(out, rank, generator=generator))
        for name in MODULES
    }


def in_peft(folder, factors=None, **settings):
    """A folder as PEFT writes it."""
    factors = factors or pairs()
    folder.mkdir(parents=True, exist_ok=True)
    rank = len(next(iter(factors.values()))[0])
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": "b"}
    (folder / peft_files.CONFIG).write_text(json.dumps(config | settings))
    tensors = {}
    for name, (a, b) in factors.items():
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    save_file(tensors, folder / peft_files.WEIGHTS)
    return folder


def reads(source, scale, factors=None):
    """Whether that is what is read: every module's s B A."""
    read = peft_files.opened(source)
    for name, (a, b) in (factors or pairs()).items():
        assert torch.allclose(read.modules[name].delta(), scale * b @ a, atol=1e-5)
        assert read.shape(name).scale == pytest.approx(scale)
    assert len(read.modules) == len(factors or MODULES)
    return read


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_qwen2(tmp_path_factory.mktemp("base"))


# --- layouts ------------------------------------------------------------------------------------------------


def test_mlx_lm(tmp_path):
    tensors = {f"{name}.lora_a": a.T.contiguous() for name, (a, _) in pairs().items()}
    tensors |= {f"{name}.lora_b": b.T.contiguous() for name, (_, b) in pairs().items()}
    save_file(tensors, tmp_path / "adapters.safetensors")
    said = {"fine_tune_type": "lora", "model": "mlx/b", "lora_parameters": {"rank": 2, "scale": 20.0}}
    (tmp_path / peft_files.CONFIG).write_text(json.dumps(said))
    read = reads(tmp_path, 20.0)
    assert (read.layout, read.base) == ("mlx-lm", "mlx/b")
    (tmp_path / peft_files.CONFIG).write_text(json.dumps(said | {"fine_tune_type": "dora"}))
    with pytest.raises(AdapterError, match=r"fine_tune_type is 'dora'.*mlx_lm.fuse"):
        peft_files.opened(tmp_path)


@pytest.mark.parametrize("whole", [False, True])
def test_an_expert_of_mttl(tmp_path, whole):
    tensors = {f"{name}.lora_a": a.T for name, (a, _) in pairs().items()}
    tensors |= {f"{name}.lora_b": b.T for name, (_, b) in pairs().items()}
    torch.save({"expert_weights": tensors} if whole else tensors, tmp_path / "phi.ckpt")
    with pytest.raises(AdapterError, match=r"nothing beside it says their scale.*phi.meta"):
        peft_files.opened(tmp_path / "phi.ckpt")
    config = {"lora_rank": 2, "lora_alpha": 16, "modify_layers": "up_proj"}
    torch.save(
        {"expert_name": "phi", "expert_config": config, "training_config": {"model": "b"}},
        tmp_path / "phi.meta",
    )
    for source in (tmp_path, tmp_path / "phi.ckpt"):
        read = reads(source, 8.0)
        assert (read.layout, read.name, read.base) == ("mttl", "phi", "b")


def test_what_a_pickle_would_run_is_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return open, (str(ran), "w")

    torch.save({"model.up_proj.lora_a": Hostile()}, tmp_path / "a.ckpt")
    with pytest.raises(AdapterError, match=r"a.ckpt is a pickle that holds .*open.*could run code"):
        peft_files.opened(tmp_path / "a.ckpt")
    in_peft(tmp_path / "bin")
    (tmp_path / "bin" / peft_files.WEIGHTS).unlink()
    torch.save({"x": Hostile()}, tmp_path / "bin" / "adapter_model.bin")
    with pytest.raises(AdapterError, match="could run code"):
        peft_files.opened(tmp_path / "bin")
    assert not ran.exists()


def in_kohya(file, seed=0):
    """A file as kohya writes it, with scale 1/2."""
    tensors = {}
    for name, (a, b) in pairs(seed=seed).items():
        flat = "lora_te_" + name.replace(".", "_")
        tensors |= {
            f"{flat}.lora_down.weight": a,
            f"{flat}.lora_up.weight": b,
            f"{flat}.alpha": torch.tensor(1.0),
        }
    save_file(tensors, file)
    return file


def test_kohya_needs_the_base_for_its_names(tmp_path, base):
    read = peft_files.opened(in_kohya(tmp_path / "kohya.safetensors"))
    assert read.layout == "kohya" and not set(read.modules) & set(MODULES)
    with pytest.raises(AdapterError, match="--model"):
        resolved(read, None)
    named = resolved(read, base_shapes(str(base)))
    for name, (a, b) in pairs().items():
        assert torch.allclose(named.modules[name].delta(), 0.5 * b @ a, atol=1e-6)
    assert against(named, base_shapes(str(base))) == []


@pytest.mark.parametrize(
    "key, words",
    [
        ("unet.down_blocks.0.attn.to_q.lora_A.weight", "diffusers"),
        ("lora_unet_x.hada_w1_a", "diffusers"),
        ("model.layers.0.up_proj.weight", "a model's own weight"),
        ("a.lokr_w1", "LoKr"),
        ("nonsense", "no name of PEFT, mlx-lm, mttl or kohya"),
    ],
)
def test_what_is_of_no_layout_is_said_to_be_what_it_is(tmp_path, key, words):
    save_file({key: torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match=words):
        peft_files.opened(tmp_path / "x.safetensors")


# --- places -------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_one_adapter_is_that_adapter(tmp_path):
    in_peft(tmp_path / "run" / "checkpoint-10")
    assert reads(tmp_path, 2.0).name == reads(tmp_path / "run", 2.0).name == "checkpoint-10"
    in_peft(tmp_path / "run" / "checkpoint-20")
    with pytest.raises(AdapterError, match=r"holds 2 adapters \(checkpoint-10, checkpoint-20\)"):
        peft_files.opened(tmp_path / "run")


def test_files_are_read_with_the_settings_beside_them(tmp_path):
    folder = in_peft(tmp_path / "a")
    reads(folder / peft_files.WEIGHTS, 2.0)
    (folder / peft_files.CONFIG).unlink()
    with pytest.raises(AdapterError, match=r"adapter_config.json is missing"):
        peft_files.opened(folder / peft_files.WEIGHTS)


def test_pointers_models_and_other_files_are_named(tmp_path, base):
    folder = in_peft(tmp_path / "a")
    (folder / peft_files.WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for source, words in (
        (folder, "git lfs pull"),
        (base, "holds a model and no adapter"),
        (tmp_path / "nowhere", "no folder or file"),
        (folder / peft_files.CONFIG, "is no file of weights"),
        ("~nosuch/x", "is no path"),
        ("a\0b", "no folder or file"),
        ("", "no path"),
    ):
        with pytest.raises(AdapterError, match=words):
            peft_files.opened(source)


def test_shards_lie_in_the_folder(tmp_path):
    folder = in_peft(tmp_path / "a")
    (folder / peft_files.WEIGHTS).unlink()
    index = folder / f"{peft_files.WEIGHTS}.index.json"
    for named, words in (
        ({"x": "../out"}, "outside"),
        ({"x": 3}, "no index"),
        ({}, "no index"),
        ({"x": "gone"}, "missing"),
    ):
        index.write_text(json.dumps({"weight_map": named}))
        with pytest.raises(AdapterError, match=words):
            peft_files.opened(folder)


def test_hub_ids(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repo, revision, allow_patterns, **_):
        asked.append((repo, revision))
        assert any("adapter_config.json" in pattern for pattern in allow_patterns)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    in_peft(tmp_path / "snapshot" / "checkpoint-3")
    for source, revision in (("org/name", None), ("org/name@v1", "v1"), ("org/name@v1:checkpoint-3", "v1")):
        assert reads(source, 2.0).name == source
        assert asked[-1] == ("org/name", revision)
    with pytest.raises(AdapterError, match="outside the repository"):
        peft_files.opened("org/name:../x")

    def fails(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(AdapterError, match=r"could not be fetched \(OSError: no network\)"):
        locate.locate("org/name@main")


# --- settings -----------------------------------------------------------------------------------------------


def test_scales_by_pattern_are_pefts(tmp_path):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": {"up_proj": 2}}
    config |= {"alpha_pattern": {r"layers\.1\.mlp\.up_proj": 32, "up_proj": 1}}
    scales = scaling(config, tmp_path)
    assert [scales.scale(name) for name in (*MODULES, "model.layers.0.my_up_proj")] == [1 / 2, 32 / 2, 8 / 4]
    assert scaling(config | {"use_rslora": True}, tmp_path).scale(MODULES[1]) == 32 / math.sqrt(2)


def test_a_head_that_comes_along_is_the_same_from_all(tmp_path):
    heads = {"one": torch.ones(3, 32), "two": torch.ones(3, 32), "other": torch.zeros(3, 32), "none": None}
    read = {}
    for name, head in heads.items():
        folder = in_peft(tmp_path / name, pairs(seed=len(name)), task_type="SEQ_CLS")
        if head is not None:
            tensors = load_file(folder / peft_files.WEIGHTS) | {"base_model.model.score.weight": head}
            save_file(tensors, folder / peft_files.WEIGHTS)
        read[name] = peft_files.opened(folder)
    assert "score.weight" in compatibility([read["one"], read["two"]]).notes[-1]
    for other, words in (
        ("other", "bring different score.weight"),
        ("none", "only the first replaces score.weight"),
    ):
        assert words in compatibility([read["one"], read[other]]).problems[0]
    save_static([read["one"], read["two"]], Merge("sum"), tmp_path / "merged")
    tensors = load_file(tmp_path / "merged" / peft_files.WEIGHTS)
    assert torch.equal(tensors["base_model.model.score.weight"], heads["one"])
    assert json.loads((tmp_path / "merged" / peft_files.CONFIG).read_text())["task_type"] == "SEQ_CLS"


# --- the command --------------------------------------------------------------------------------------------


def checked(*arguments):
    done = click.testing.CliRunner().invoke(check, list(map(str, arguments)), standalone_mode=False)
    assert done.exception is None
    return done.return_value, done.output.splitlines()


def test_check_holds_names_and_shapes_against_the_base(tmp_path, base):
    right = in_peft(tmp_path / "right")
    renamed = in_peft(
        tmp_path / "renamed", {n.replace("model.", "model.language_model."): f for n, f in pairs().items()}
    )
    wide = in_peft(tmp_path / "wide", pairs(inside=33))
    assert checked(right, "--model", base)[0] == 0
    status, lines = checked(right, renamed, wide, "--model", base)
    assert status == 1 and lines[0].startswith("fine")
    assert (
        "2 of 2 modules are not in the base" in lines[1] and "it has model.layers.0.mlp.up_proj" in lines[1]
    )
    assert "(out, in) is (64, 33) and in the base (64, 32) (and 1 more)" in lines[2]


def test_check_looks_at_the_base_that_adapters_name_where_it_is_here(tmp_path, base):
    named = {"base_model_name_or_path": str(base)}
    right, wide = in_peft(tmp_path / "right", **named), in_peft(tmp_path / "wide", pairs(inside=33), **named)
    assert checked(right) == (0, [f"fine     {right}: rank 2, 2 modules, base {base}"])
    status, lines = checked(wide)
    assert status == 1 and "(out, in) is (64, 33) and in the base (64, 32)" in lines[0]
    away = in_peft(tmp_path / "away", pairs(inside=33), base_model_name_or_path=f"{base}-of-somebody")
    assert checked(away)[0] == 0
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    status, lines = checked(in_peft(tmp_path / "c", base_model_name_or_path=str(tmp_path / "broken")))
    assert status == 0 and lines[0].startswith("note") and "cannot be looked at" in lines[0]


def test_diagnose_takes_what_merge_and_check_take(tmp_path, base):
    below = in_peft(tmp_path / "run" / "checkpoint-10").parent
    pair = [below, in_kohya(tmp_path / "kohya.safetensors", seed=1)]
    status, lines = diagnosed(*pair, "--model", base)
    assert status == 0 and "checkpoint-10" in lines and "kohya" in lines
    modules = json.loads((tmp_path / "told.json").read_text())["modules"]
    assert set(modules) == set(MODULES)
    status, lines = diagnosed(*pair, in_peft(tmp_path / "wide", pairs(inside=33)), "--model", base)
    assert status == 1 and "(64, 33) and in the base (64, 32)" in " ".join(lines.split())


def diagnosed(*arguments):
    told = Path(arguments[0]).parent / "told.json"
    done = click.testing.CliRunner().invoke(
        diagnose, [*map(str, arguments), "--json", str(told)], standalone_mode=False, catch_exceptions=False
    )
    return done.return_value, done.output


def test_check_names_everything_that_stands_against_a_merge(tmp_path):
    parts = [
        in_peft(tmp_path / "a"),
        in_peft(tmp_path / "b", pairs(out=65)),
        in_peft(tmp_path / "c", pairs(inside=31)),
    ]
    status, lines = checked(*parts)
    assert status == 1 and sum(line.startswith("refused  together") for line in lines) == 2


def test_names_of_the_base_decide_nothing_unless_asked(tmp_path):
    pair = [in_peft(tmp_path / name, pairs(seed=place), base_model_name_or_path=base, revision=name,
    task_type=task)
            for place, (name, base, task) in enumerate([("a", "org/b", "CAUSAL_LM"), ("b",
            "/here/b-bnb-4bit", "SEQ_CLS")])]  # fmt: skip
    status, lines = checked(*pair)
    assert status == 0 and "their base has 2 names" in lines[3]
    assert "task_type differs (CAUSAL_LM, SEQ_CLS)" in lines[4] and "revision differs (a, b)" in lines[5]
    status, lines = checked(*pair, "--same-base")
    assert status == 1 and "name different bases, 'org/b' and '/here/b-bnb-4bit'" in lines[2]


def test_an_adapter_of_ours_goes_beside_a_foreign_one(tmp_path):
    modules = {name: LoRA(b, a.T) for name, (a, b) in pairs().items()}
    peft_files.write(tmp_path / "ours", "ours", modules, "org/b", details={"base_digest": "feed"})
    assert checked(tmp_path / "ours", in_peft(tmp_path / "foreign"))[0] == 0
