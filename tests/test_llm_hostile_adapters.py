"""Adapters' folders mangled at random: named errors, nothing run, nothing written but --out, no traceback."""

import contextlib
import json
import os
import random
import shutil
import struct

import pytest
import torch
from hostile import call, fault, mutated_json, mutated_text
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llm_experiments import __main__ as command
from llm_experiments.adapters import peft_files
from toytransformer.adapters import LoRA

CONFIG, WEIGHTS, EXTRA = peft_files.CONFIG, peft_files.WEIGHTS, peft_files.EXTRA
PREFIX = "base_model.model."
#: Names of tensors that no adapter should have, or in which a path is hidden.
NAMES = (
    *(
        "",
        ".",
        "..",
        "../../escape",
        "/etc/passwd",
        "a\x00b",
        "\x1b[31m",
        "é\u202e",
        "x" * 5000,
        "lora_A.weight",
    ),
    *(
        f"{PREFIX}../../x.lora_A.weight",
        f"{PREFIX}x.lora_embedding_A",
        f"{PREFIX}layer.a.lora_magnitude_vector",
    ),
    *(f"{PREFIX}layer.a.lora_B.bias", f"{PREFIX}layer.a.lora_A.other.weight", f"{PREFIX}lm_head.weight"),
    *(
        f"{PREFIX}layer[3].lora_A.weight",
        f"{PREFIX}layer.a.base_layer.weight",
        "lora_x.lora_down.weight",
        "a.lora_a",
    ),
)
SETTINGS = (
    *({"r": value} for value in (0, -1, 2.5, "2", None, [2], True, 10**400, 3)),
    *({"lora_alpha": value} for value in (0, -1, "x", None, 1e308, {}, float("nan"), float("inf"))),
    *({"rank_pattern": value} for value in (3, [], {"a": 2}, {"(": 2}, {"(a*)*": 2}, {"a": "x"}, {".*.*.*x":
    2})), *({"alpha_pattern": {"a" * 2000: 1}}, {"alpha_pattern": {"": 3}}, {"use_rslora": "yes"},
    {"use_dora": True}), *({"modules_to_save": value} for value in (3, [3], ["lm_head"], "lm_head", [""])),
    *({"target_parameters": value} for value in (3, [3], ["layer.a.weight"], [""])),
    *({"task_type": 3}, {"revision": []}, {"base_model_name_or_path": {}}, {"lora_bias": True}, {"peft_type":
    []}), *({"fine_tune_type": 3, "lora_parameters": 3}, {"lora_parameters": {"scale": "x"}}, {"bias":
    "all"}), *({"target_modules": "../../x"}, {"base_model_name_or_path": "../../../etc"}, {"auto_mapping":
    {"x": 1}}),
)  # fmt: skip


class Payload:
    """What leaves a file where it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def header(folder, rng):
    """The header of the weights with one thing changed: a shape, a kind, an offset, a name, its own
    length."""
    data = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    said, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind = rng.randrange(5)
    if kind == 0:
        said = mutated_json(said, rng)
    elif kind == 1:
        part = said[rng.choice([key for key in said if key != "__metadata__"])]
        part["shape"] = rng.choice(([], [2**62, 2], [-1, 2], [2**31, 2**31], [0, 5], [2, 2, 2], ["2", 2]))
    elif kind == 2:
        part = said[rng.choice([key for key in said if key != "__metadata__"])]
        part["dtype"] = rng.choice(("I64", "BOOL", "F8_E4M3", "F4", "C64", "F64", "Q", "", None))
    text = json.dumps(said).encode()
    text = mutated_text(text.decode(), rng).encode(errors="surrogatepass") if kind == 3 else text
    length = rng.choice((2**63, 0, 7, len(text) + 9)) if kind == 4 else len(text)
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + text + rest)


def tensors(folder, rng):
    """Other numbers, shapes, kinds or names."""
    held = load_file(folder / WEIGHTS)
    key = rng.choice(sorted(held))
    kind = rng.randrange(5)
    if kind == 0:
        held[key] = held[key] * rng.choice((float("nan"), float("inf"), 1e38, 0.0))
    elif kind == 1:
        held[key] = held[key].to(
            rng.choice((torch.int64, torch.bool, torch.float8_e5m2, torch.float64, torch.int8))
        )
    elif kind == 2:
        shape = rng.choice(((), (0,), (3,), (2, 2, 2), (0, 2), (7, 7)))
        held[key] = torch.ones(shape)
    elif kind == 3:
        held[rng.choice([name for name in NAMES if "\x00" not in name])] = held[key].clone()
    else:
        del held[key]
    save_file(held, folder / WEIGHTS)


def texts(folder, rng):
    """The settings or the details: changed as JSON, as text, nested, or not text at all."""
    file = folder / rng.choice((CONFIG, CONFIG, EXTRA))
    kind = rng.randrange(4)
    if kind == 0:
        file.write_text(json.dumps(json.loads(file.read_text()) | rng.choice(SETTINGS)))
    elif kind == 1:
        file.write_text(json.dumps(mutated_json(json.loads(file.read_text()), rng)))
    elif kind == 2:
        file.write_text(mutated_text(file.read_text(), rng), errors="surrogatepass")
    else:
        file.write_bytes(
            rng.choice((b"", b"\xff\xfe\x00", b"[" * 50_000, b"null", b"9" * 5000, b'{"a":' * 50_000))
        )


def places(folder, rng):
    """A file gone, or something else in its place: a link to outside, a pipe, a folder, a pickle, an
    index."""
    file = folder / rng.choice((CONFIG, WEIGHTS, EXTRA))
    file.unlink()
    marker = folder.parent / "ran"
    kind = rng.randrange(7)
    if kind == 0:
        file.symlink_to(
            rng.choice(("/etc/passwd", "/dev/zero", "nowhere", file.name, "..", "/proc/self/mem"))
        )
    elif kind == 1:
        os.mkfifo(file)
    elif kind == 2:
        file.mkdir()
    elif kind == 3:
        torch.save({f"{PREFIX}layer.a.lora_A.weight": Payload(marker)}, folder / "adapter_model.bin")
    elif kind == 4:
        torch.save(
            {"x.lora_a": torch.ones(1).expand(10**12, 2), "x.lora_b": torch.ones(2, 2)}, folder / "e.ckpt"
        )
        torch.save(Payload(marker), folder / "e.meta")
    elif kind == 5:
        named = rng.choice(("../../escape.safetensors", "/etc/passwd", "", "..", "gone", 3, ["x"]))
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"x": named}}))
    else:
        file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")


#: What a second change meets where the first left nothing to read, or another type.
SPOILED = (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError)
MANGLERS = (header, tensors, texts, places)


def survives(folder, seed):
    """Mangle a copy of a sound adapter, and check and merge it beside a sound one."""
    rng = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(0)
    modules = {
        name: LoRA(torch.randn(5, 2, generator=generator), torch.randn(7, 2, generator=generator))
        for name in ("layer.a", "layer.b")
    }
    for name in ("sound", "mangled"):
        peft_files.write(folder / name, name, modules, "base", alpha=3)
    for _ in range(rng.choice((1, 1, 2))):
        if any(path.is_symlink() or not path.is_file() for path in (folder / "mangled").iterdir()):
            break  # a pipe or a device, at which the test itself would wait
        with contextlib.suppress(*SPOILED):
            rng.choice(MANGLERS)(folder / "mangled", rng)
    before = sorted(folder.rglob("*"))
    rule = rng.choice(("sum", "ties", "linear-peft", "sum-truncated"))
    out = folder / "out"
    mangled, sound = str(folder / "mangled"), str(folder / "sound")
    for arguments in (
        ("check", sound, mangled),
        ("merge", mangled, sound, "--rule", rule, "--out", str(out)),
    ):
        outcome = call(command.main, arguments)
        assert fault(outcome) is None, (seed, outcome)
    after = [path for path in sorted(folder.rglob("*")) if path != out and out not in path.parents]
    assert after == before, seed
    if outcome.status == 0:  # what was taken for sound is
        read = peft_files.read(out)
        assert all(torch.isfinite(lora.write).all() for lora in read.modules.values())


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_mangled_adapters_are_refused_in_words(tmp_path_factory, seed):
    survives(tmp_path_factory.getbasetemp() / "mangled-adapter", seed)


@pytest.mark.slow
def test_a_thousand_mangled_adapters_are_refused_in_words(tmp_path):
    for seed in range(1000):
        survives(tmp_path / "adapter", seed)
