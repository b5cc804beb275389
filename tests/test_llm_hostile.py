"""Models, adapters and templates made in bad faith: each is refused in words, and nothing of it is run."""

import builtins
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click.testing
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import CHAT_TEMPLATES, tiny_gguf, tiny_qwen2, tiny_tokenizer

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.peft_files import AdapterError
from llm_experiments.commands.adapters import check
from llm_experiments.embedded.corpus import BaseWorld, WorldError
from llm_experiments.merges.saving import save_static
from llm_experiments.models import files, sources
from llm_experiments.models.load import load
from llm_experiments.models.prompts import form_of, prompt_text
from llm_experiments.models.sources import ModelError
from llm_experiments.models.templates import STEPS, UnfitTemplate, chat_template
from toytransformer.adapters import LoRA
from toytransformer.compositions.spec import Merge

DEEP = '{"a":' + "[" * 100_000
DOUBLED = (
    "{{% set n = namespace(s={}) %}}{{% for i in range(60) %}}{{% set n.s = {} %}}{{% endfor %}}{{{{ n.s }}}}"
)
TURN = [{"role": "user", "content": "Where does Ann live?"}]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return tiny_qwen2(tmp_path_factory.mktemp("models") / "tiny", chat="chatml")


@pytest.fixture
def copy(shelf, tmp_path):
    return Path(shutil.copytree(shelf, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def pipe(path: Path) -> None:
    """A FIFO in place of a file: whoever opens it waits for a writer that never comes."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"hidden_size": 2**40}, "cannot be loaded"),
        ({"hidden_size": 2**16}, "a model of 25845891072 parameters.*hold 43296 numbers"),
        ({"intermediate_size": 2**50}, "belongs to another model"),
        ({"vocab_size": 2**40}, "belongs to another model"),
        ({"head_dim": 2**45}, "belongs to another model"),
        ({"num_hidden_layers": 2**40, "layer_types": None}, f"num_hidden_layers is {2**40}.*27 tensors"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"num_key_value_heads": 0}, "ZeroDivisionError"),
        ({"hidden_size": 0}, "cannot be loaded"),
        ({"hidden_size": -1}, "cannot be loaded"),
        ({"hidden_act": "x"}, "KeyError"),
        ({"model_type": 3}, "cannot be loaded"),
        ({"quantization_config": 3}, "cannot be loaded"),
    ],
)
def test_a_configuration_of_nonsense_is_refused_before_memory_is_taken(copy, changes, words):
    edit(copy / "config.json", **changes)
    with pytest.raises(ModelError, match=words):
        load(copy)


@pytest.mark.parametrize(
    "name",
    [*(f"{name}.json" for name in ("config", "generation_config", "tokenizer_config", "tokenizer", "world")),
     sources.INDEX],
)  # fmt: skip
def test_files_nested_too_deeply_are_refused(copy, name):
    (copy / name).write_text(DEEP)
    with pytest.raises(ModelError, match=r"copy.*(RecursionError|recursion|nested)"):
        load(copy)


def test_nobody_waits_at_a_pipe(shelf, tmp_path):
    """In a process of its own, so that one who waits is seen."""
    names = [*sources.SMALL_FILES, sources.INDEX, "world.json", "README.md"]
    folders = [Path(shutil.copytree(shelf, tmp_path / name)) for name in names]
    for folder in folders:
        pipe(folder / folder.name)
    code = (
        "import sys\nfrom llm_experiments.models.load import load\n"
        "from llm_experiments.models.sources import ModelError\n"
        "for name in sys.argv[1:]:\n"
        "  try: load(name)\n"
        "  except ModelError: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}', '{"weight_map": {"a": [1]}}',
     '{"weight_map": {"a": 1, "b": "c"}}', "{", "\xff"],
)  # fmt: skip
def test_an_index_of_nonsense_is_refused(copy, content):
    (copy / sources.INDEX).write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match=r"index.json.*fetch it again"):
        load(copy)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"people": [], "places": 3, "facts": [], "seed": 0}',
     '{"people": [{"name": ["x"], "chained": true, "frequency": 1}], "places": [], "facts": [], "seed": 0}',
     '{"people": [], "places": [], "facts": [], "seed": 0, "more": 1}',
     '{"people": [], "places": [], "facts": [{}], "seed": 0}', "{", DEEP],
)  # fmt: skip
def test_a_world_of_nonsense_is_refused(copy, content):
    (copy / "world.json").write_text(content)
    with pytest.raises(WorldError, match=r"world.json is no world"):
        BaseWorld.read(copy / "world.json")
    with pytest.raises(ModelError, match=r"world.json is no world"):
        load(copy)


@pytest.mark.parametrize("end", ["x", {"a": 1}, [[1]], 2.5])
def test_end_tokens_are_numbers(copy, end):
    edit(copy / "generation_config.json", eos_token_id=end)
    with pytest.raises(ModelError, match="eos_token_id"):
        load(copy)


def test_weights_of_eight_bits_are_read_as_the_numbers_they_are(copy):
    weights = load_file(copy / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert torch.equal(load(copy).model.get_parameter(name), weights[name].float())


@pytest.mark.parametrize(
    "name", ["~nosuch/x", "x" * 5000, "a\0b", "\ud800", " ", "..", "http://x/y", "/dev/zero"]
)
def test_names_of_nothing_are_refused(name):
    with pytest.raises(ModelError):
        load(name)


def test_no_code_beside_a_gguf_file_is_run_or_asked_about(tmp_path, monkeypatch):
    """A terminal that says yes to every question, and a config that asks for the code in its folder."""
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("a question was asked"))
    file, ran = tiny_gguf(tmp_path / "place" / "tiny.gguf", chat="chatml"), tmp_path / "ran"
    (file.parent / "foreign.py").write_text(f"open({str(ran)!r}, 'w')\nclass Foreign: pass\n")
    auto = {"AutoConfig": "foreign.Foreign", "AutoModelForCausalLM": "foreign.Foreign"}
    (file.parent / "config.json").write_text(json.dumps({"model_type": "foreign", "auto_map": auto}))
    auto = {"AutoTokenizer": ["foreign.Foreign", "foreign.Foreign"]}
    (file.parent / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto}))
    beside = load(file, cache=tmp_path / "a")
    assert not ran.exists()
    alone = load(shutil.copy(file, tmp_path / "alone.gguf"), cache=tmp_path / "b")
    assert beside.digest == alone.digest
    assert prompt_text(beside, "Who?") == prompt_text(alone, "Who?")


# --- chat templates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, words",
    [
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "end"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", f"in {STEPS} steps"),
        ("{{ 'x' * 99999999999 }}", "MemoryError"),
        ("{{ 'x' * 9999999 }}", "9999999 characters"),
        (DOUBLED.format("'x'", "n.s ~ n.s"), "MemoryError"),
        (DOUBLED.format("1", "[n.s, n.s]"), "does not end|MemoryError"),
        ("{{ [1, 2] | random }}", "random.*may not depend on chance"),
        ("{{ lipsum() }}", "lipsum"),
        ("{{ raise_exception }}", "an address"),
        ("{{ cycler }} {{ namespace() }}{{ joiner() }}", "an address"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
        ("{% if", "TemplateSyntaxError"),
        ("{% include 'x' %}", "TypeError|TemplateNotFound"),
        ("{{ '\\ud800' }}", "surrogates"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError|undefined|unsafe"),
        ("{% set n = namespace() %}{% set n._x = 1 %}{{ n._x }}", "SecurityError"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_trusted_with_a_prompt_is_refused(source, words):
    with pytest.raises(UnfitTemplate, match=words):
        chat_template(source, {})
    tokenizer = tiny_tokenizer(chat="chatml")
    tokenizer.chat_template = source
    with pytest.raises(ModelError, match=rf"template cannot be used: .*({words})"):
        form_of(tokenizer)


def test_a_template_that_goes_astray_on_one_question_alone_is_stopped(shelf):
    source = (
        "{% for m in messages %}{{ m.content }}{% if 'Ann' in m.content %}"
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}{% endif %}{% endfor %}"
    )
    assert chat_template(source, {}).render([{"role": "user", "content": "Bob?"}]) == "Bob?"
    with pytest.raises(UnfitTemplate, match="does not end"):
        chat_template(source, {}).render(TURN)
    assert sys.gettrace() is None or "count" not in repr(sys.gettrace())


def test_a_template_that_writes_an_address_on_one_question_alone_is_refused_there(shelf):
    source = (
        "{% for m in messages %}{{ m.content }}"
        "{% if 'Ann' in m.content %}{{ m.content.upper }}{% endif %}{% endfor %}"
    )
    template = chat_template(source, {})
    for said in ("Bob?", "What lies at 0x7f00deadbeef?"):
        assert template.render([{"role": "user", "content": said}]) == said
    with pytest.raises(UnfitTemplate, match="writes an address, at 0x"):
        template.render(TURN)


def test_the_day_is_always_the_same(shelf):
    loaded = load(shelf)
    for today in ("{{ strftime_now('%d %b %Y') }}", "{{ date_string }}"):
        loaded.tokenizer.chat_template = today + CHAT_TEMPLATES["chatml"]
        dated = dataclasses.replace(loaded, form=form_of(loaded.tokenizer))
        assert prompt_text(dated, "Where?").startswith("26 Jul 2024<|im_start|>")


FEATURES = (
    "{{ bos_token }}{% for m in messages %}\n  {%- if loop.first %}<{{ m.role | upper }}>{% endif %}\n"
    "{% generation %}{{ m | tojson }}{% endgeneration %}{% if m.content == 'x' %}{% break %}{% endif %}"
    "{% set n = namespace(a=1) %}{% set n.b = n.a + 1 %}{{ n.b }}{{ dict(a=1)['a'] }}\n{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}{% if tools %}T{% endif %}{{ eos_token }}\n"
)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=3),
       st.booleans(), st.sampled_from([FEATURES, *CHAT_TEMPLATES.values()]))  # fmt: skip
def test_a_template_is_rendered_as_transformers_does(contents, generate, source):
    tokenizer = tiny_tokenizer(chat="chatml")
    turns = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant", "user"), contents, strict=False)
    ]
    expected = tokenizer.apply_chat_template(
        turns, chat_template=source, tokenize=False, add_generation_prompt=generate
    )
    assert chat_template(source, tokenizer.special_tokens_map).render(turns, generate) == expected


# --- adapters -----------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path):
    generator = torch.Generator().manual_seed(0)
    lora = LoRA(torch.randn(5, 2, generator=generator), torch.randn(7, 2, generator=generator))
    peft_files.write(tmp_path / "adapter", "one", {"layer.a": lora}, "base")
    return tmp_path / "adapter"


def stored(adapter, change) -> None:
    weights = load_file(adapter / peft_files.WEIGHTS)
    save_file({name: change(tensor) for name, tensor in weights.items()}, adapter / peft_files.WEIGHTS)


SPOILED = {
    "beyond float32": lambda a: stored(a, lambda t: t.double() * 1e300),
    "times its scale": lambda a: edit(a / peft_files.CONFIG, lora_alpha=1e8) or stored(a, lambda t: t * 1e34),
    "lora_alpha is 1e[+]308": lambda a: edit(a / peft_files.CONFIG, lora_alpha=1e308),
    "lora_alpha is 10000": lambda a: edit(a / peft_files.CONFIG, lora_alpha=10**400),
    "r is 10000": lambda a: edit(a / peft_files.CONFIG, r=10**400),
    "use_rslora is 'no'": lambda a: edit(a / peft_files.CONFIG, use_rslora="no"),
    "name is 3": lambda a: edit(a / peft_files.EXTRA, name=3),
    "base_digest is": lambda a: edit(a / peft_files.EXTRA, base_digest=["x"]),
    "base_model_name_or_path is": lambda a: edit(a / peft_files.CONFIG, base_model_name_or_path={"a": 1}),
    "config.json cannot be read .*nested": lambda a: (a / peft_files.CONFIG).write_text(DEEP),
    "details.json cannot be read .*nested": lambda a: (a / peft_files.EXTRA).write_text(DEEP),
    "config.json is no file": lambda a: pipe(a / peft_files.CONFIG),
    "details.json is no file": lambda a: pipe(a / peft_files.EXTRA),
    "safetensors is missing": lambda a: pipe(a / peft_files.WEIGHTS),
    "of torch.int32": lambda a: stored(a, lambda t: t.int()),
}  # fmt: skip


@pytest.mark.parametrize("words", SPOILED)
def test_check_and_merge_refuse_the_same_adapters(adapter, words):
    SPOILED[words](adapter)
    with pytest.raises(AdapterError, match=words):  # what `merge` reads by
        peft_files.read(adapter)
    done = click.testing.CliRunner().invoke(check, [str(adapter)], standalone_mode=False)
    assert done.return_value == 1 and done.output.startswith("refused")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float64])
def test_factors_of_any_float_are_read(adapter, kind):
    stored(adapter, lambda tensor: tensor.to(kind))
    weights = load_file(adapter / peft_files.WEIGHTS)
    lora = peft_files.read(adapter).modules["layer.a"]
    assert torch.equal(lora.write, weights["base_model.model.layer.a.lora_B.weight"].float())


def test_factors_that_overflow_when_written_are_refused(tmp_path):
    lora = LoRA(torch.full((2, 1), 1e300, dtype=torch.float64), torch.ones(2, 1))
    with pytest.raises(AdapterError, match="beyond float32"):
        peft_files.write(tmp_path, "one", {"layer.a": lora}, "base")
    with pytest.raises(AdapterError, match="beyond float32"):
        tiny = LoRA(torch.full((2, 1), 1e30), torch.ones(2, 1))
        peft_files.write(tmp_path, "one", {"layer.a": tiny}, "base", alpha=1e-12)


# --- what is shown ------------------------------------------------------------------------------------------


def test_check_shows_escapes_as_text(adapter):
    edit(adapter / peft_files.CONFIG, base_model_name_or_path="\x1b[31mred\x07\nsecond \ud800")
    edit(adapter / peft_files.EXTRA, base_digest=None)
    done = click.testing.CliRunner().invoke(check, [str(adapter)], standalone_mode=False)
    assert done.exception is None and r"base \x1b[31mred\x07\nsecond \ud800" in done.output
    assert done.output.count("\n") == 1


def test_the_card_of_a_merged_adapter_shows_names_as_text(adapter, tmp_path):
    library = [
        dataclasses.replace(peft_files.read(adapter), name=name)
        for name in ("<script>alert(1)</script>", "![x](http://y)\n# z", "plain-name_1")
    ]
    save_static(library, Merge("mean"), tmp_path / "out", name="<img src=x>")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "<script>" not in card and "<img" not in card and "![x]" not in card and "\n# z" not in card
    assert "&lt;script&gt;" in card and "plain-name_1" in card


@given(st.text())
def test_what_is_printable_is_one_line_and_plain_text_stays(text):
    shown = files.printable(text)
    assert shown.isprintable() and shown.encode().decode() == shown
    assert shown == text or not text.isprintable()


def test_large_files_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    assert files.read_json(tmp_path / "a.json") == [1, 2, 3]
    monkeypatch.setattr(files, "LARGEST", 5)
    with pytest.raises(files.FileError, match="9 bytes; more than 5"):
        files.read_json(tmp_path / "a.json")
