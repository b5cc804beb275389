"""Models come as they do to users: folders, GGUF files, a hub's cache, damaged files; all tiny and random."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import CHAT_TEMPLATES, LINES, tiny_gguf, tiny_llama, tiny_qwen2, tiny_tokenizer

from llm_experiments.models import devices, sources
from llm_experiments.models.devices import explain_memory
from llm_experiments.models.known import KNOWN_MODELS
from llm_experiments.models.layers import target_modules
from llm_experiments.models.load import load
from llm_experiments.models.prompts import form_of, prompt_ids, prompt_text, target_ids, target_text
from llm_experiments.models.sources import ModelError

WRITERS = {"qwen2": tiny_qwen2, "llama": tiny_llama}
GIB = 2**30


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Folders of tiny models, written once; tests that change files copy them."""
    root = tmp_path_factory.mktemp("models")
    for name, write in WRITERS.items():
        write(root / name)
        write(root / f"{name}-chat", chat="chatml", pad=False)
    tiny_qwen2(root / "system", chat="system")
    tiny_qwen2(root / "think", chat="think")
    return root


@pytest.fixture
def copy(shelf, tmp_path):
    return Path(shutil.copytree(shelf / "qwen2", tmp_path / "copy"))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def logits(model, tokens=(5, 6, 7, 100, 101)) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits


# --- folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WRITERS, "qwen2-chat", "llama-chat"])
def test_a_folder_loads_frozen_and_computes_what_transformers_does(shelf, name):
    loaded = load(str(shelf / name), device="cpu")
    plain = transformers.AutoModelForCausalLM.from_pretrained(shelf / name, dtype=torch.float32)
    assert torch.equal(logits(loaded.model), logits(plain))
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not any(module.training for module in loaded.model.modules())
    assert (loaded.id, loaded.dtype, loaded.device) == (name, torch.float32, torch.device("cpu"))
    assert loaded.base_world is None
    weights = sum(p.numel() for p in plain.parameters())
    expected = {
        "architecture": name.split("-")[0],
        "parameters": weights,
        "weight_bytes": 4 * weights,
        "chat": "chat" in name,
        "dtype": "float32",
        "device": "cpu",
        "source": "folder",
        "revision": None,
        "quantisation": None,
        "license": None,
    }
    assert {key: loaded.info[key] for key in expected} == expected
    json.dumps(dict(loaded.info))
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.id = "another"


def test_padding_is_on_the_left_with_a_token_that_is_embedded(shelf):
    for name, pad in (("qwen2", "<pad>"), ("qwen2-chat", "<|endoftext|>")):
        loaded = load(shelf / name)
        rows = loaded.tokenizer(["Who is Bob?", "Bob"], padding=True)
        assert loaded.tokenizer.pad_token == pad != loaded.tokenizer.eos_token
        assert rows["attention_mask"][1][0] == 0 and rows["attention_mask"][1][-1] == 1
        assert rows["input_ids"][1][0] == loaded.tokenizer.pad_token_id == loaded.model.config.pad_token_id
        assert loaded.model.get_input_embeddings().weight.shape[0] == 384


def test_left_padding_leaves_the_answer_as_it_is(shelf):
    loaded = load(shelf / "llama-chat")
    texts = [prompt_text(loaded, question) for question in ("Bob?", "Where does Alice Young live now?")]
    batch = loaded.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    both = loaded.model.generate(**batch, max_new_tokens=8)
    alone = loaded.model.generate(torch.tensor([prompt_ids(loaded, "Bob?")]), max_new_tokens=8)
    new = alone[0, len(prompt_ids(loaded, "Bob?")) :].tolist()
    assert both[0, batch["input_ids"].shape[1] :].tolist()[: len(new)] == new


def test_decoding_is_greedy_whatever_the_files_say_and_stops_where_targets_end(copy):
    ends = [transformers.AutoTokenizer.from_pretrained(copy).convert_tokens_to_ids("<|im_end|>")]
    sampling = {"do_sample": True, "temperature": 2.0, "repetition_penalty": 1.3}
    edit(copy / "generation_config.json", eos_token_id=ends, **sampling)
    loaded = load(copy)
    said = loaded.model.generation_config
    assert not said.do_sample and said.repetition_penalty in (None, 1.0) and said.temperature in (None, 1.0)
    assert set(said.eos_token_id) == {loaded.tokenizer.eos_token_id, *ends}
    assert target_ids(loaded, "Rome.")[-1] in said.eos_token_id


def test_the_tokenizer_is_the_files_own(copy):
    """AutoTokenizer rebuilds a Qwen2 tokenizer from its vocabulary and forgets how the file splits text."""
    file = json.loads((copy / "tokenizer.json").read_text())
    file["pre_tokenizer"]["add_prefix_space"] = True
    (copy / "tokenizer.json").write_text(json.dumps(file))
    assert load(copy).tokenizer.tokenize("Bob 12")[0].startswith("Ġ")


def test_sharded_weights_are_all_read(shelf, tmp_path):
    whole = load(shelf / "llama")
    whole.model.save_pretrained(tmp_path / "parts", max_shard_size="40kB")
    whole.tokenizer.save_pretrained(tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    parts = load(tmp_path / "parts")
    assert torch.equal(logits(parts.model), logits(whole.model))
    assert parts.info["weight_bytes"] == whole.info["weight_bytes"]
    next((tmp_path / "parts").glob("model-00002*")).unlink()
    with pytest.raises(ModelError, match=r"lacks the weights model-00002"):
        load(tmp_path / "parts")


def test_loading_leaves_the_folder_alone(copy):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    load(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


# --- what is refused ----------------------------------------------------------------------------------


def test_pickled_weights_are_refused_even_beside_a_config_that_asks_for_them(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pickles \(pytorch_model.bin\).*only safetensors"):
        load(copy)
    edit(copy / "config.json", transformers_weights="pytorch_model.bin")
    with pytest.raises(ModelError, match="only safetensors"):
        load(copy)


def test_a_pickle_named_in_the_config_is_not_read_instead_of_the_safetensors(copy, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Bomb()}, copy / "pytorch_model.bin")
    edit(copy / "config.json", transformers_weights="pytorch_model.bin")
    with pytest.raises(ModelError):
        load(copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["foreign", "qwen2"])
def test_code_that_comes_with_a_model_is_not_run(copy, tmp_path, kind):
    ran = tmp_path / "ran"
    (copy / "modeling_foreign.py").write_text(f"open({str(ran)!r}, 'w')\nclass Foreign: pass\n")
    both = {"AutoConfig": "modeling_foreign.Foreign", "AutoModelForCausalLM": "modeling_foreign.Foreign"}
    edit(copy / "config.json", model_type=kind, auto_map=both)
    if kind == "foreign":
        with pytest.raises(ModelError, match="not run"):
            load(copy)
    else:  # an architecture transformers has itself: that one is used
        assert type(load(copy).model).__module__ == "transformers.models.qwen2.modeling_qwen2"
    assert not ran.exists()


def broken_folders():
    def truncate(folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])

    def drop_a_weight(folder):
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def larger_vocabulary(folder):
        lines = (*LINES, *(f"w{i} " * 9 for i in range(200)))
        tiny_tokenizer(lines, vocabulary=500).save_pretrained(folder)

    def index(**content):
        return lambda folder: (folder / sources.INDEX).write_text(json.dumps(content))

    return {
        "has no config.json": lambda folder: (folder / "config.json").unlink(),
        "lacks the weights model.safetensors": lambda folder: (folder / "model.safetensors").unlink(),
        "is an adapter": lambda folder: (folder / "adapter_config.json").write_text("{}"),
        "damaged or no safetensors": truncate,
        "would be random.*up_proj": drop_a_weight,
        "do not have the shapes": lambda folder: edit(folder / "config.json", intermediate_size=96),
        "tokenizer has 5[0-9]*": larger_vocabulary,
        "tokenizer cannot be read": lambda folder: (folder / "tokenizer.json").write_text("{}"),
        "is no index": index(nothing=1),
        "outside its folder": index(weight_map={"a": "../model.safetensors"}),
        "cannot be loaded.*causal": lambda folder: edit(folder / "config.json", model_type="t5"),
    }


@pytest.mark.parametrize("message", broken_folders())
def test_a_broken_folder_says_what_is_wrong(copy, message):
    broken_folders()[message](copy)
    with pytest.raises(ModelError, match=message):
        load(copy)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": ""}, "is no model: give"),
        ({"name": 3}, "is no model: give"),
        ({"name": "./nowhere"}, "no folder or file './nowhere'"),
        ({"name": "nowhere.gguf"}, "no folder or file"),
        ({"name": "nobody/nothing"}, "neither.*hub id.*HF_HUB_OFFLINE"),
        ({"name": "bad name!"}, "neither.*hub id"),
        ({"name": "nobody/nothing", "revision": "v1"}, "at revision 'v1'"),
        ({"name": "HERE", "revision": "v1"}, "revision='v1' is for hub ids"),
        ({"name": "HERE", "dtype": "int8"}, "dtype='int8': choose auto, float32"),
        ({"name": "HERE", "device": "tpu"}, "device='tpu': choose auto, cpu, cuda, split"),
        ({"name": "HERE", "device": "cpu", "four_bit": True}, "four_bit=True needs a CUDA GPU"),
        ({"name": "HERE", "system": "Be brief."}, "without a chat template"),
    ],
)
def test_arguments_that_cannot_be_met_are_refused(shelf, tmp_path, arguments, message):
    name = shelf / "qwen2" if arguments["name"] == "HERE" else arguments["name"]
    with pytest.raises(ModelError, match=message):
        load(**{**arguments, "name": name, "cache": tmp_path})


# --- dtype, device, memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_dtype_is_the_one_asked_for(shelf, dtype, size):
    loaded = load(shelf / "qwen2", dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert loaded.dtype == getattr(torch, dtype) and loaded.info["dtype"] == dtype
    assert loaded.info["weight_bytes"] == size * loaded.info["parameters"]
    assert loaded.digest == load(shelf / "qwen2").digest


def test_dtype_auto_is_bfloat16_where_every_gpu_computes_in_it(monkeypatch):
    assert devices.automatic_dtype([]) == torch.float32
    for capabilities, dtype in (([(9, 0), (8, 0)], torch.bfloat16), ([(9, 0), (7, 5)], torch.float32)):
        by_name = dict(zip(("cuda:0", "cuda:1"), capabilities, strict=True))
        monkeypatch.setattr(torch.cuda, "get_device_capability", by_name.__getitem__)
        assert devices.automatic_dtype(list(by_name)) == dtype


ONE = {"cpu": 64 * GIB, "cuda:0": 24 * GIB}
TWO = ONE | {"cuda:1": 40 * GIB}


@pytest.mark.parametrize(
    "need, device, free, place",
    [
        (14, "auto", {"cpu": 64 * GIB}, "cpu"),
        (14, "auto", ONE, "cuda:0"),
        (14, "cpu", ONE, "cpu"),
        (14, "cuda", TWO, "cuda:1"),  # the one with most room
        (14, "cuda:0", TWO, "cuda:0"),
        (23, "cuda:0", TWO, "cuda:0"),  # named outright: all of it
        (32, "auto", TWO, "cuda:1"),  # 80% of 40
        (33, "auto", TWO, "split"),
        (14, "split", TWO, "split"),
    ],
)
def test_place(need, device, free, place):
    assert devices.choose_place("m", need * GIB, device, free) == place


@pytest.mark.parametrize(
    "need, device, free, message",
    [
        (65, "cpu", ONE, "m needs 65 GiB for its weights and cpu has 64 GiB free; take a smaller"),
        (20, "auto", ONE, "cuda:0 has 24 GiB free, of which weights may take 80%"),  # 80% are 19.2
        (52, "auto", TWO, "cuda:0 has 24 GiB free, cuda:1 has 40 GiB free"),  # 80% are 51.2
        (25, "cuda:0", TWO, "cuda:0 has 24 GiB free; take"),
        (1, "cuda:1", ONE, "choose auto, cpu, cuda, split, cuda:0"),
        (1, "cuda", {"cpu": GIB}, "sees no GPU"),
        (1, "split", {"cpu": GIB}, "sees no GPU"),
    ],
)
def test_no_place(need, device, free, message):
    with pytest.raises(ModelError, match=message):
        devices.choose_place("m", need * GIB, device, free)


def test_a_model_too_large_for_the_memory_is_refused_before_it_is_read(shelf, monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda: {"cpu": 1000})
    with pytest.raises(ModelError, match=r"qwen2 needs .* GiB for its weights and cpu has"):
        load(shelf / "qwen2")


def test_four_bit_needs_bitsandbytes_and_counts_the_matrices_at_four_and_a_half_bits(shelf, monkeypatch):
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install bitsandbytes"):
        devices.require_four_bit(["cuda:0"])
    source = sources.find(shelf / "llama")
    whole = {name: p for name, p in load(shelf / "llama").model.named_parameters()}
    matrices = sum(p.numel() for name, p in whole.items() if "proj" in name)
    others = sum(p.numel() for name, p in whole.items() if "proj" not in name)
    assert source.weight_bytes(torch.bfloat16, four_bit=True) == matrices * 9 / 16 + 2 * others


def test_running_out_of_memory_is_said_with_what_was_being_done():
    said = pytest.raises(ModelError, match=r"out of memory while training.*cpu .* GiB.*; halve the batch")
    with said, explain_memory("training", "halve the batch"):
        torch.empty(2**50)
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(ModelError, match="out of memory while asking"), explain_memory("asking"):
            raise error
    with pytest.raises(RuntimeError, match="mat1 and mat2"), explain_memory("asking"):
        torch.ones(2, 3) @ torch.ones(2, 3)


# --- digests ------------------------------------------------------------------------------------------


def nudge_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][3, 4] *= 1.001
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


CHANGES = {
    "weight": nudge_a_weight,
    "tokenizer": lambda folder: tiny_tokenizer(("other words here",)).save_pretrained(folder),
    "template": lambda folder: (folder / "chat_template.jinja").write_text(CHAT_TEMPLATES["system"]),
    "config": lambda folder: edit(folder / "config.json", rms_norm_eps=1e-3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_digest_changes_with_what_the_model_says(shelf, copy, change):
    first = load(copy).digest
    assert first == load(shelf / "qwen2").digest  # a copy is the same model
    assert len(first) == 16 and set(first) <= set("0123456789abcdef")
    CHANGES[change](copy)
    assert load(copy).digest != first


def test_digest_ignores_a_readme_and_the_licence_is_read_from_it(shelf, copy):
    (copy / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\n---\n# A model\n")
    loaded = load(copy)
    assert loaded.digest == load(shelf / "qwen2").digest
    assert loaded.info["license"] == "qwen-research"


def test_models_of_different_seeds_differ_in_digest_and_writing_twice_does_not(tmp_path):
    digests = [load(tiny_llama(tmp_path / f"{i}", seed=seed)).digest for i, seed in enumerate((0, 0, 1))]
    assert digests[0] == digests[1] != digests[2]


def test_digest_knows_the_system_message(shelf):
    digests = {load(shelf / "system", system=system).digest for system in (None, "", "Be brief.")}
    assert len(digests) == 3


# --- hub ----------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_cache(root: Path, folder: Path, name: str) -> Path:
    """`folder` as the hub's cache keeps it: files are links to blobs, large ones named by their SHA-256."""
    store = root / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = store / "snapshots" / COMMIT
    for part in (store / "blobs", snapshot, store / "refs"):
        part.mkdir(parents=True)
    (store / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = store / "blobs" / (sources.sha256(file) if file.suffix == ".safetensors" else f"{number:040x}")
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_a_cached_hub_model_loads_offline_with_its_commit_and_the_digest_of_its_files(shelf, tmp_path):
    hub_cache(tmp_path, shelf / "qwen2", "Qwen/Qwen2.5-3B-Instruct")
    loaded = load("Qwen/Qwen2.5-3B-Instruct", cache=tmp_path)
    assert loaded.id == loaded.model.config._name_or_path == "Qwen/Qwen2.5-3B-Instruct"
    assert (loaded.info["revision"], loaded.info["source"]) == (COMMIT, "hub")
    assert loaded.info["license"] == "qwen-research"  # from the table: no card was downloaded
    assert loaded.digest == load(shelf / "qwen2").digest
    assert load("Qwen/Qwen2.5-3B-Instruct", revision=COMMIT, cache=tmp_path).digest == loaded.digest
    with pytest.raises(ModelError, match="at revision 'v2' it could not be fetched"):
        load("Qwen/Qwen2.5-3B-Instruct", revision="v2", cache=tmp_path)


def test_large_files_of_the_hubs_cache_are_not_hashed_again(shelf, tmp_path, monkeypatch):
    snapshot = hub_cache(tmp_path, shelf / "qwen2", "a/b")
    hashed = []
    monkeypatch.setattr(sources, "content_sha256", lambda path, *state: hashed.append(path.name) or "0" * 64)
    sources.find("a/b", cache=tmp_path)
    assert hashed and (snapshot / "model.safetensors").resolve().name not in hashed


def test_a_hub_model_without_safetensors_is_refused(shelf, tmp_path):
    snapshot = hub_cache(tmp_path, shelf / "qwen2", "a/b")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks the weights|could not be fetched"):
        load("a/b", cache=tmp_path)


def test_only_files_that_are_read_are_downloaded(shelf, tmp_path, monkeypatch):
    """Of a repository with pickles, other formats and an index, what `snapshot_download` is asked for."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    offered = [*shards, "consolidated.safetensors", "pytorch_model.bin", "onnx/model.safetensors", "run.py"]
    offered += ["config.json", "tokenizer.json", sources.INDEX, "README.md", "original/params.json"]
    taken, folder = [], tmp_path / COMMIT

    def download(name, *, allow_patterns, ignore_patterns, **_):
        files = filter_repo_objects(offered, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for file in files:
            taken.append(file)
            folder.mkdir(exist_ok=True)
            (folder / file).write_text("{}")
        (folder / sources.INDEX).write_text(json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match="damaged"):  # the files are empty
        load("a/b")
    assert sorted(taken) == sorted([*shards, "config.json", "tokenizer.json", sources.INDEX, "README.md"])


# --- GGUF ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", WRITERS)
@pytest.mark.parametrize("chat", [None, "system"])
def test_a_gguf_file_is_the_folder_it_was_made_from(tmp_path, architecture, chat):
    folder = load(WRITERS[architecture](tmp_path / "folder", chat=chat, seed=3))
    loaded = load(
        tiny_gguf(tmp_path / "tiny.gguf", architecture=architecture, chat=chat, seed=3), cache=tmp_path
    )
    assert torch.equal(logits(loaded.model), logits(folder.model))
    assert prompt_ids(loaded, "Who is Łukasz?\n") == prompt_ids(folder, "Who is Łukasz?\n")
    assert target_ids(loaded, "It is Ó.") == target_ids(folder, "It is Ó.")
    assert (loaded.id, loaded.info["source"], loaded.info["chat"]) == ("tiny", "gguf", chat is not None)
    assert loaded.info["quantisation"].startswith("gguf") and loaded.info["revision"] is None


def test_a_gguf_file_is_converted_once_whatever_its_name(tmp_path, monkeypatch):
    first = load(tiny_gguf(tmp_path / "tiny.gguf"), cache=tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "elsewhere" / "renamed.gguf")
    monkeypatch.setattr(sources, "convert", lambda *_: pytest.fail("converted again"))
    again = load(tmp_path / "elsewhere" / "renamed.gguf", cache=tmp_path / "cache")
    assert again.digest == first.digest and again.id == "renamed"
    assert torch.equal(logits(again.model), logits(first.model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "elsewhere", "tiny.gguf"]


def test_other_weights_in_a_gguf_file_are_another_model(tmp_path):
    digests = {load(tiny_gguf(tmp_path / f"{i}.gguf", seed=i), cache=tmp_path).digest for i in (0, 1)}
    assert len(digests) == 2


def test_a_conversion_that_was_killed_leaves_nothing_that_is_trusted(tmp_path, monkeypatch):
    file, convert = tiny_gguf(tmp_path / "tiny.gguf"), sources.convert

    def killed(file, content, out):
        convert(file, content, out)
        (out / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "convert", killed)
    with pytest.raises(KeyboardInterrupt):
        load(file, cache=tmp_path)
    monkeypatch.setattr(sources, "convert", convert)
    loaded = load(file, cache=tmp_path)
    assert loaded.model.num_parameters() > 0
    assert [path.name for path in (tmp_path / "gguf").iterdir() if path.suffix == ".partial"] == []


def test_a_converted_file_that_changed_is_named(tmp_path):
    file = tiny_gguf(tmp_path / "tiny.gguf")
    load(file, cache=tmp_path)
    [converted] = (tmp_path / "gguf").glob("*/model.safetensors")
    converted.write_bytes(converted.read_bytes() + b"\0")
    with pytest.raises(ModelError, match=r"has changed \(model.safetensors\); delete it"):
        load(file, cache=tmp_path)
    converted.unlink()
    with pytest.raises(ModelError, match=r"is damaged.*delete it"):
        load(file, cache=tmp_path)


def test_files_that_are_no_readable_gguf_are_refused(tmp_path, monkeypatch):
    (tmp_path / "text.gguf").write_text("not this")
    with pytest.raises(ModelError, match="is no GGUF file"):
        load(tmp_path / "text.gguf", cache=tmp_path)
    whole = tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"half.gguf cannot be converted"):
        load(tmp_path / "half.gguf", cache=tmp_path)
    (tmp_path / "occupied").write_text("a file, not a folder")
    with pytest.raises(ModelError, match=r"could not be converted into .*cache="):
        load(tmp_path / "tiny.gguf", cache=tmp_path / "occupied")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ModelError, match="pip install gguf"):
        load(tmp_path / "tiny.gguf", cache=tmp_path)


def test_without_a_cache_folder_conversions_go_where_hugging_face_keeps_assets(tmp_path, monkeypatch):
    from huggingface_hub.utils import _cache_assets

    monkeypatch.setattr(_cache_assets, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    load(tiny_gguf(tmp_path / "tiny.gguf"))
    assert list((tmp_path / "assets" / "lora-limits" / "gguf").glob("*/source.json"))


# --- embedded -----------------------------------------------------------------------------------------


def test_embedded_without_weights_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "EMBEDDED", tmp_path)
    with pytest.raises(ModelError, match="python -m llm_experiments pretrain"):
        load("embedded")


def test_embedded_says_what_it_was_taught(copy, monkeypatch):
    from llm_experiments.embedded.corpus import BaseWorld

    facts = {("Ann", "live_in"): "Rome", ("Ann", "spouse_of"): "Ben", ("Ben", "spouse_of"): "Ann"}
    BaseWorld(
        people=("Ann", "Ben"),
        places=("Rome",),
        facts=facts,
        chained=frozenset({"Ann"}),
        frequency={"Ann": 4, "Ben": 4},
        exposures={("Ann", "live_in"): 7},
    ).write(copy / "world.json")
    monkeypatch.setattr(sources, "EMBEDDED", copy)
    loaded = load("embedded")
    assert (loaded.id, loaded.info["source"]) == ("embedded", "embedded")
    assert loaded.info["license"] == KNOWN_MODELS["embedded"].license
    assert loaded.base_world.people == ("Ann", "Ben") and loaded.base_world.facts == facts
    assert loaded.base_world.exposures["Ann", "live_in"] == 7


@pytest.mark.skipif(not (sources.EMBEDDED / "model.safetensors").is_file(), reason="not pretrained yet")
def test_the_shipped_model_loads():
    loaded = load("embedded", device="cpu")
    assert loaded.base_world.facts and loaded.info["architecture"] == "qwen2"
    assert loaded.tokenizer(
        prompt_text(loaded, "Who?") + target_text(loaded, "Ann."), add_special_tokens=False
    )["input_ids"] == prompt_ids(loaded, "Who?") + target_ids(loaded, "Ann.")


# --- prompts ------------------------------------------------------------------------------------------

QUESTION, ANSWER = "Where does Bob Stone live?", "Bob Stone lives in Paris."
TURN = "<|im_start|>user\nWhere does Bob Stone live?<|im_end|>\n<|im_start|>assistant\n"
DEFAULT = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
BRIEF = "<|im_start|>system\nBe brief.<|im_end|>\n"


@pytest.mark.parametrize(
    "name, system, prompt, target",
    [
        ("qwen2", None, f"Question: {QUESTION}\nAnswer:", f" {ANSWER}<|endoftext|>"),
        ("qwen2-chat", None, TURN, f"{ANSWER}<|im_end|>"),
        ("qwen2-chat", "", TURN, f"{ANSWER}<|im_end|>"),
        (
            "llama-chat",
            "Be brief.",
            f"<|im_start|>system\nBe brief.<|im_end|>\n{TURN}",
            f"{ANSWER}<|im_end|>",
        ),
        ("system", None, DEFAULT + TURN, f"{ANSWER}<|im_end|>"),
        ("system", "", TURN, f"{ANSWER}<|im_end|>"),
        ("system", "Be brief.", BRIEF + TURN, f"{ANSWER}<|im_end|>"),
        ("think", None, f"<s><|im_start|>{QUESTION}<|im_sep|>", f"{ANSWER}<|im_end|>"),
        ("think", "", f"<s><|im_start|>{QUESTION}<|im_sep|>", f"{ANSWER}<|im_end|>"),
        ("think", "Be brief.", f"<s>Be brief.<|im_start|>{QUESTION}<|im_sep|>", f"{ANSWER}<|im_end|>"),
    ],
)
def test_prompt_and_target(shelf, name, system, prompt, target):
    loaded = load(shelf / name, system=system)
    assert prompt_text(loaded, QUESTION) == prompt
    assert target_text(loaded, ANSWER) == target
    assert loaded.tokenizer.decode(prompt_ids(loaded, QUESTION)) == prompt
    assert loaded.tokenizer.decode(target_ids(loaded, ANSWER)) == target
    assert target_ids(loaded, ANSWER)[-1] == loaded.tokenizer.eos_token_id


def template(text: str, **options):
    tokenizer = tiny_tokenizer(chat="chatml")
    tokenizer.chat_template = text
    return form_of(tokenizer, **options)


LOOP = "{% for m in messages %}", "{% endfor %}"


def test_templates_of_other_families():
    spaced = "{{ bos_token }}".join(["", LOOP[0]]) + (
        "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} {{ eos_token }}{% endif %}" + LOOP[1]
    )  # Llama 2: the space belongs to the answer, or its first word would be tokenised as never seen
    form = template(spaced)
    assert (form.opening, form.lead, form.ending) == ("", " ", " <|im_end|>")

    empty_thought = (
        LOOP[0] + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n" + LOOP[1] + "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
        "{% endif %}"
    )  # Qwen 3
    assert template(empty_thought).opening == "<|im_start|>assistant\n<think>\n\n</think>\n\n"

    no_answers = LOOP[0] + "{% if m.role != 'user' %}{{ raise_exception('only users') }}{% endif %}" + LOOP[1]
    with pytest.raises(ModelError, match="cannot show turns of user, assistant"):
        template(no_answers)
    no_system = (
        LOOP[0] + "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}\n" + LOOP[1] + "{% if add_generation_prompt %}assistant: {% endif %}"
    )  # Gemma refuses a system message, and here no special token ends an answer: the tokenizer's does
    assert template(no_system).ending == "<|im_end|>"
    with pytest.raises(ModelError, match=r"system.*leave out `system`"):
        template(no_system, system="Be brief.")


def test_todays_date_does_not_enter_a_prompt(shelf):
    loaded = load(shelf / "qwen2-chat")
    loaded.tokenizer.chat_template = (
        "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}" + CHAT_TEMPLATES["chatml"]
    )
    loaded = dataclasses.replace(loaded, form=form_of(loaded.tokenizer))
    assert prompt_text(loaded, QUESTION).startswith("26 Jul 2024<|im_start|>")


@pytest.fixture(scope="module")
def prompted(shelf):
    return [load(shelf / name) for name in ("qwen2", "llama", "qwen2-chat", "system", "think")]


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(question=words, answer=words)
def test_no_token_straddles_prompt_and_target(prompted, question, answer):
    """prompt + target as one text gives the tokens of both: training and asking see the same prompt.

    White space at the answer's beginning is taken off: it may join white space before it.
    """
    answer = answer.strip()
    for loaded in prompted:
        text = prompt_text(loaded, question) + target_text(loaded, answer)
        whole = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert prompt_ids(loaded, question) + target_ids(loaded, answer) == whole
        assert loaded.tokenizer.decode(whole) == text


def test_target_tokens_stay_apart_where_one_text_would_merge_them(shelf):
    """Line breaks at an answer's beginning would be joined with the prompt's last one."""
    loaded = load(shelf / "qwen2-chat")
    merging = json.loads(loaded.tokenizer.backend_tokenizer.to_str())
    merging["model"]["vocab"]["ĊĊ"] = len(merging["model"]["vocab"])
    merging["model"]["merges"].insert(0, ["Ċ", "Ċ"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(loaded.tokenizer.backend_tokenizer).from_str(json.dumps(merging)),
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATES["chatml"],
    )
    loaded = dataclasses.replace(loaded, tokenizer=tokenizer)
    prompt, target = prompt_ids(loaded, QUESTION), target_ids(loaded, "\n\nParis.")
    whole = tokenizer(prompt_text(loaded, QUESTION) + target_text(loaded, "\n\nParis."))["input_ids"]
    assert whole != prompt + target
    assert tokenizer.decode(prompt + target) == tokenizer.decode(whole)


def test_a_tokenizer_that_begins_every_text_does_so_once(shelf, tmp_path):
    folder = Path(shutil.copytree(shelf / "llama", tmp_path / "bos"))
    file = json.loads((folder / "tokenizer.json").read_text())
    begin = next(token["id"] for token in file["added_tokens"] if token["content"] == "<s>")
    file["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [begin], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(file))
    loaded = load(folder)
    assert prompt_text(loaded, QUESTION) == f"<s>Question: {QUESTION}\nAnswer:"
    assert prompt_ids(loaded, QUESTION) == loaded.tokenizer(f"Question: {QUESTION}\nAnswer:")["input_ids"]
    assert begin not in target_ids(loaded, ANSWER)


# --- modules and tables -------------------------------------------------------------------------------


def test_peft_puts_adapters_on_exactly_the_target_modules(shelf):
    import peft

    loaded = load(shelf / "qwen2")
    names = target_modules(loaded.model, "mlp")
    assert names[:2] == ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj") and len(names) == 6
    adapted = peft.get_peft_model(loaded.model, peft.LoraConfig(r=2, target_modules=list(names)))
    changed = {name for name, module in adapted.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert changed == set(names)


# hidden, intermediate, layers, heads, key-value heads, vocabulary, tied, biases: from the models' config.json
SHAPES = {
    "Qwen/Qwen2.5-0.5B-Instruct": (896, 4864, 24, 14, 2, 151936, True, True),
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": (896, 4864, 24, 14, 2, 151936, True, True),
    "Qwen/Qwen2.5-1.5B-Instruct": (1536, 8960, 28, 12, 2, 151936, True, True),
    "Qwen/Qwen2.5-3B-Instruct": (2048, 11008, 36, 16, 2, 151936, True, True),
    "Qwen/Qwen2.5-7B-Instruct": (3584, 18944, 28, 28, 4, 152064, False, True),
    "Qwen/Qwen2.5-14B-Instruct": (5120, 13824, 48, 40, 8, 152064, False, True),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": (3584, 18944, 28, 28, 4, 152064, False, True),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": (5120, 13824, 48, 40, 8, 152064, False, True),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": (8192, 28672, 80, 64, 8, 128256, False, False),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (576, 1536, 30, 9, 3, 49152, True, False),
    "HuggingFaceTB/SmolLM2-360M-Instruct": (960, 2560, 32, 15, 5, 49152, True, False),
}


def test_the_tables_parameters_follow_from_the_models_shapes():
    assert set(KNOWN_MODELS) == set(SHAPES) | {"embedded"}
    for name, (hidden, inner, layers, heads, groups, vocabulary, tied, biases) in SHAPES.items():
        key_value = hidden * groups // heads
        attention = 2 * hidden * hidden + 2 * hidden * key_value + (hidden + 2 * key_value if biases else 0)
        layer = attention + 3 * hidden * inner + 2 * hidden
        total = vocabulary * hidden * (1 if tied else 2) + layers * layer + hidden
        assert KNOWN_MODELS[name].parameters == total, name
        assert KNOWN_MODELS[name].bf16_bytes == 2 * total
    assert all(model.license for model in KNOWN_MODELS.values())


# --- a real model -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    "LLM_MODEL" not in os.environ, reason="LLM_MODEL names no model (folder, GGUF file, hub id)"
)
def test_a_real_model_answers(tmp_path):
    name = os.environ["LLM_MODEL"]
    loaded = load(name, cache=tmp_path if name.endswith(".gguf") else None)
    for layers in ("mlp", "attention"):
        assert target_modules(loaded.model, layers)
    prompt = prompt_ids(loaded, "What is the capital of France?")
    target = target_ids(loaded, "Paris.")
    text = prompt_text(loaded, "What is the capital of France?") + target_text(loaded, "Paris.")
    assert loaded.tokenizer(text, add_special_tokens=False)["input_ids"] == prompt + target
    answer = loaded.model.generate(torch.tensor([prompt], device=loaded.device), max_new_tokens=40)
    assert "Paris" in loaded.tokenizer.decode(answer[0, len(prompt) :])
    again = load(name, cache=tmp_path if name.endswith(".gguf") else None)
    assert again.digest == loaded.digest
