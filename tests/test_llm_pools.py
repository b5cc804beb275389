"""Pools: rows from headers alone, kept and resumed; selectors against dense formulas; merges of many."""

import http.server
import json
import math
import os
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import llm_experiments.pools.index as index_module
from llm_experiments.__main__ import cli
from llm_experiments.adapters import peft_files
from llm_experiments.adapters.lists import list_line, listed
from llm_experiments.adapters.locate import CONFIG, WEIGHTS
from llm_experiments.adapters.tensor_files import StoredTensor
from llm_experiments.diagnose.library import measure as geometry_of
from llm_experiments.domains.own.questions import Question
from llm_experiments.merges.loss import encoded, mean_loss
from llm_experiments.merges.merging import apply
from llm_experiments.merges.saving import static_adapter
from llm_experiments.merges.truncation import MORE, WIDE, cut, distance, norm, wide
from llm_experiments.models.load import load
from llm_experiments.pools.index import index, places, read_index
from llm_experiments.pools.members import patterns
from llm_experiments.pools.selectors import SELECTORS, Selection, select, selector
from llm_experiments.pools.table import Pool, open_members, plain_name
from llm_experiments.registry import RegistryError
from tests.tiny_models import tiny_qwen2
from toytransformer.adapters import AdapterError, LoRA
from toytransformer.compositions import Merge
from toytransformer.merging import RuleError

NAMES = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj")
SIZES = {"up_proj": (64, 32), "down_proj": (32, 64)}
#: Algebraic: float32's unit, times room for sums over these matrices.
SINGLE = 2**10 * float(np.finfo(np.float32).eps)


def write(folder, seed, names=NAMES, rank=2, base="org/base", scale=0.3, **more):
    rng = np.random.default_rng(seed)
    modules = {}
    for name in names:
        out, inside = SIZES[name.rpartition(".")[2]]
        sides = rng.normal(size=(out, rank)), rng.normal(size=(inside, rank))
        modules[name] = LoRA(*(scale * torch.tensor(side, dtype=torch.float32) for side in sides))
    peft_files.write(folder, folder.name, modules, base, **more)
    return folder


@pytest.fixture
def folder(tmp_path):
    """Five sound adapters, two of them on one module less, and six that are none."""
    root = tmp_path / "pool"
    for seed in range(5):
        write(root / f"sound-{seed}", seed, NAMES if seed < 3 else NAMES[:2])
    shutil.copytree(root / "sound-1", root / "deep" / "run" / "checkpoint-7")
    (root / "sound-2" / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: other\n---\n# words\n")
    for name in ("cut", "dora", "empty", "pointer", "nothing", "words"):
        write(root / name, 9)
    with (root / "cut" / WEIGHTS).open("r+b") as file:
        file.truncate(700)
    config = json.loads((root / "dora" / CONFIG).read_text())
    (root / "dora" / CONFIG).write_text(json.dumps({**config, "use_dora": True}))
    (root / "empty" / WEIGHTS).write_bytes(b"")
    (root / "pointer" / WEIGHTS).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    (root / "nothing" / WEIGHTS).unlink()
    (root / "words" / CONFIG).write_text("[" * 100_000)
    return root


def test_a_broken_member_is_a_row_that_says_why(folder, tmp_path):
    rows = {row.id: row for row in index([str(folder)], tmp_path / "rows.jsonl")}
    reasons = {id: row.refused for id, row in rows.items() if row.refused}
    words = {"cut": "damaged", "dora": "DoRA", "empty": "damaged", "pointer": "git lfs pull",
             "nothing": "missing", "words": "cannot be read"}  # fmt: skip
    assert reasons.keys() == words.keys()
    for id, said in words.items():
        assert said in reasons[id] and "\n" not in reasons[id], reasons[id]
    assert rows.keys() - words.keys() == {*(f"sound-{seed}" for seed in range(5)), "deep/run/checkpoint-7"}


def test_a_row_is_what_the_opened_adapter_says(folder, tmp_path):
    for row in index([str(folder)], tmp_path / "rows.jsonl"):
        if row.refused:
            continue
        adapter = peft_files.read(row.source)
        assert row.rank == adapter.rank and row.count == len(adapter.modules)
        assert row.parameters == sum(
            lora.write.numel() + lora.read.numel() for lora in adapter.modules.values()
        )
        assert row.bytes == (Path(row.source) / WEIGHTS).stat().st_size and row.base == "org/base"
        assert row.licence == ("apache-2.0" if row.id == "sound-2" else None)
    up = {f"model.layers.{block}.mlp.up_proj": (6, 4) for block in range(3)}
    assert patterns(up) == {"model.layers.*.mlp.up_proj": (6, 4, 3)}
    assert set(patterns(up | {"model.layers.3.mlp.up_proj": (7, 4)})) == {*up, "model.layers.3.mlp.up_proj"}


def test_no_number_of_a_tensor_is_read(folder, tmp_path, monkeypatch):
    def read(*_):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(StoredTensor, "read", read)
    monkeypatch.setattr("llm_experiments.adapters.tensor_files._read_safe", read)
    assert sum(row.refused is None for row in index([str(folder)], tmp_path / "rows.jsonl")) == 6


def test_rows_are_kept_until_an_adapter_changes_and_an_interrupted_run_goes_on(folder, tmp_path, monkeypatch):
    file, seen = tmp_path / "rows.jsonl", []
    look = index_module.local_member
    monkeypatch.setattr(index_module, "local_member", lambda id, *rest: seen.append(id) or look(id, *rest))

    def interrupted(done, every):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index([str(folder)], file, tick=interrupted)
    assert len(seen) == 4
    with file.open("a") as lines:
        lines.write('{"version": 1, "id": "half a li')  # killed as it was written
    rows = index([str(folder)], file)
    assert len(seen) == len(rows) == 12, "what was looked at is not looked at again"
    assert index([str(folder)], file) == rows == read_index(file) and len(seen) == 12
    before = {row.id: row.digest for row in rows}
    write(folder / "sound-0", 77)
    shutil.rmtree(folder / "sound-4")
    rows = index([str(folder)], file)
    assert seen[12:] == ["sound-0"] and {row.id for row in rows} == before.keys() - {"sound-4"}
    after = {row.id: row.digest for row in rows}
    assert {id for id in after if after[id] != before[id]} == {"sound-0"}
    assert "sound-4" not in file.read_text()


def test_lists_name_folders_files_and_hub_ids(folder, tmp_path):
    file = tmp_path / "list.txt"
    file.write_text(
        f"# mine\n{folder / 'sound-0'}\norg/one:sub  # theirs\n\n{folder / 'sound-1' / WEIGHTS}\n"
    )
    found = places([str(file)])
    assert [place.local for place in found] == [True, True, False]
    for text, said in (("", "names no adapter"), ("\xff\xfe", "no list")):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(AdapterError, match=said):
            places([str(file)])
    with pytest.raises(AdapterError, match="no folder, no list"):
        places([str(tmp_path / "gone")])
    (tmp_path / "none").mkdir()
    with pytest.raises(AdapterError, match="holds no adapter"):
        places([str(tmp_path / "none")])


def test_names_of_one_base_are_aliases_and_other_shapes_stay_apart(tmp_path):
    one = ("meta-llama/Llama-3.1-8B-Instruct", "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit",
           "/cache/models--meta-llama--Llama-3.1-8B-Instruct/snapshots/0e9e39f2",
           r"D:\models\Llama-3.1-8B-Instruct", "llama3.1-8b-instruct")  # fmt: skip
    for number, base in enumerate((*one, "meta-llama/Llama-3.1-8B", None)):
        write(tmp_path / "pool" / f"adapter-{number}", number, base=base)
    other = write(tmp_path / "pool" / "other", 9, base=one[0])
    modules = {NAMES[0]: LoRA(torch.ones(64, 1), torch.ones(16, 1))}
    peft_files.write(other, "other", modules, one[0])
    pool = Pool(tuple(index([str(tmp_path / "pool")], tmp_path / "rows.jsonl")))
    first = pool.bases[0]
    assert set(first.aliases) == set(one) and len(first.members) == 5
    assert list(first.apart) == ["other"] and "(64, 16)" in first.apart["other"]
    assert pool.of_base([one[1]]).members == first.members
    assert len(pool.of_base([one[0], "Llama-3.1-8B"]).members) == 6
    assert plain_name(None) == "(not named)"
    with pytest.raises(AdapterError, match="no adapter of the pool is for the base 'gpt2'"):
        pool.of_base(["gpt2"])
    with pytest.raises(AdapterError, match="can be merged"):
        Pool(()).of_base()


# --- the hub, as a server of real files ---------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub: what a repository holds, and ranges of its files."""

    root: Path
    served: list[tuple[str, int]]

    def do_HEAD(self):
        self._file(body=False)

    def do_GET(self):
        if match := re.fullmatch(r"/api/models/(org/[\w-]+)(?:/revision/[\w-]+)?(?:\?.*)?", self.path):
            folder = self.root / match[1]
            if not folder.is_dir():
                return self._send(404, b"{}")
            files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
            siblings = [
                {"rfilename": str(one.relative_to(folder)), "size": one.stat().st_size, "blobId": "b"}
                for one in files
            ]
            about = {"_id": "0", "id": match[1], "sha": "c0ffee", "siblings": siblings, "tags": [],
                     "cardData": {"license": "mit"}, "private": False, "downloads": 0}  # fmt: skip
            return self._send(200, json.dumps(about).encode())
        return self._file(body=True)

    def _file(self, *, body):
        match = re.fullmatch(r"/(org/[\w-]+)/resolve/[\w-]+/(.+)", self.path)
        file = self.root / match[1] / match[2] if match else None
        if file is None or not file.is_file():
            return self._send(404, b"")
        content = file.read_bytes()
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or ""):
            content = content[int(wanted[1]) : int(wanted[2]) + 1]
        self.served.append((file.name, len(content) if body else 0))
        return self._send(200 if wanted is None else 206, content, body=body)

    def _send(self, status, content, *, body=True):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"e7a9"')
        self.send_header("X-Repo-Commit", "c0ffee")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine with the repositories in tmp_path/hub."""
    handler = type("Here", (Hub,), {"root": tmp_path / "hub", "served": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
                        address + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield handler
    server.shutdown()


def test_of_a_repository_the_header_is_asked_for_and_no_file_of_weights(tmp_path, hub):
    big = {
        f"model.layers.{block}.mlp.up_proj": LoRA(torch.randn(3000, 8), torch.randn(1000, 8))
        for block in range(4)
    }
    peft_files.write(tmp_path / "hub/org/one", "one", big, "org/base")
    write(tmp_path / "hub/org/two/sub", 1)
    (tmp_path / "hub/org/three").mkdir()
    file = tmp_path / "list.txt"
    file.write_text("org/one\norg/two:sub\norg/two\norg/three\norg/gone\n")
    rows = {row.id: row for row in index([str(file)], tmp_path / "rows.jsonl")}
    local = index([str(tmp_path / "hub/org/one")], tmp_path / "local.jsonl")[0]
    own = rows["org/one"]
    assert own.refused is None, own.refused
    same = ("rank", "modules", "parameters", "bytes", "base", "layout")
    assert [getattr(own, name) for name in same] == [getattr(local, name) for name in same]
    assert own.licence == "mit" and own.stamp == "c0ffee"
    read = sum(size for name, size in hub.served if name == WEIGHTS)
    assert 0 < read < own.bytes / 4
    assert rows["org/two:sub"].refused is None and rows["org/two:sub"].count == 3
    assert "add :FOLDER" in rows["org/two"].refused and "has no" in rows["org/three"].refused
    assert "cannot be asked for" in rows["org/gone"].refused
    before = len(hub.served)
    again = {row.id: row for row in index([str(file)], tmp_path / "rows.jsonl")}
    assert again == rows and len(hub.served) == before, "a commit that was looked at is not asked for again"


# --- selectors ----------------------------------------------------------------------------------------------


@pytest.fixture
def members(tmp_path):
    for seed in range(4):
        write(tmp_path / "pool" / f"adapter-{seed}", seed, NAMES if seed else NAMES[:2], rank=2 + seed % 2)
    return index([str(tmp_path / "pool")], tmp_path / "rows.jsonl")


def dense(adapter):
    return {name: lora.delta().double().numpy() for name, lora in adapter.modules.items()}


#: Of two dense updates, as the code of arXiv 2602.12323 computes them.
DENSE = {
    "cosine": lambda d, t: np.sum(d * t) / (np.linalg.norm(d) * np.linalg.norm(t)),
    "abs": lambda d, t: np.sum(np.abs(d * t)) / (np.linalg.norm(d) * np.linalg.norm(t)),
    "clamp": lambda d, t: np.sum(np.clip(d * t, 0, None)) / (np.linalg.norm(d) * np.linalg.norm(t)),
    "quasi-fisher": lambda d, t: np.sum(d**2 * t**2) / (np.linalg.norm(d**2) * np.linalg.norm(t**2)),
}


@pytest.mark.parametrize("name", DENSE)
def test_likeness_is_the_dense_formula_over_modules_that_either_changes(members, name):
    target = peft_files.read(members[1].source)
    found = {row.id: score for row, score in select(name, Selection(members, target=target))}
    wanted = dense(target)
    for row in members:
        own = dense(peft_files.read(row.source))
        mean = sum(DENSE[name](own[module], wanted[module]) for module in own) / len(wanted)
        expected = math.sqrt(mean) if name == "quasi-fisher" else mean
        assert found[row.id] == pytest.approx(expected, abs=SINGLE)
    assert max(found, key=found.get) == members[1].id
    assert name not in ("cosine", "quasi-fisher") or found[members[1].id] == pytest.approx(1, abs=SINGLE)


def test_distance_is_that_of_the_geometry(members):
    target = peft_files.read(members[2].source)
    found = {row.id: score for row, score in select("distance", Selection(members, target=target))}
    gram = geometry_of(
        [replace(one, name=str(n)) for n, one in enumerate([target, *open_members(members)])]
    ).gram
    for place, row in enumerate(members, start=1):
        expected = gram[0, 0] + gram[place, place] - 2 * gram[0, place]
        assert found[row.id] == pytest.approx(-expected, abs=SINGLE * gram[0, 0])


def test_random_is_by_the_seed_and_not_by_the_order_of_rows(members):
    first = select("random", Selection(members, seed=3), 2)
    assert select("random", Selection(members[::-1], seed=3), 2) == first
    drawn = {row.id for seed in range(30) for row, _ in select("random", Selection(members, seed=seed), 1)}
    assert drawn == {row.id for row in members}
    assert [row for row, _ in select("all", Selection(members))] == members


def test_selectors_say_what_they_lack(members):
    for name, entry in SELECTORS.items():
        if entry.needs:
            with pytest.raises(RuleError, match=f"selector '{name}' needs .*--"):
                select(name, Selection(members))
        assert entry.formula.endswith((".", ","))
    with pytest.raises(RuleError, match="none is kept here"):
        select("text", Selection(members))
    with pytest.raises(RegistryError, match="there is no selector 'best': choose"):
        select("best", Selection(members))
    with pytest.raises(RuleError, match="5 of 4 adapters cannot be selected"):
        select("all", Selection(members), 5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load(str(tiny_qwen2(tmp_path_factory.mktemp("model"))))


def test_by_examples_is_what_each_alone_does(members, tiny):
    examples = (
        Question("Who is the spouse of Alice Young?", "Bob Stone"),
        Question("Where does Bob Stone live?", "Paris"),
    )
    job = Selection(members, examples=examples, model=tiny)
    found = {row.id: score for row, score in select("loss", job)}
    right = {row.id: score for row, score in select("accuracy", job)}
    for row in members:
        with apply(tiny, [peft_files.read(row.source)], Merge("sum")):
            tokens = [encoded(tiny, one) for one in examples]
            total = mean_loss(tiny, tokens, 4) * sum(len(answer) for _, answer in tokens)
        assert found[row.id] == pytest.approx(-total / len(examples), rel=1e-4)
        assert 0 <= right[row.id] <= 1 + 1 / 4
    assert sorted(found, key=found.get) == sorted(right, key=right.get), "none is right: the loss decides"


# --- many merged --------------------------------------------------------------------------------------------


def test_a_wide_sum_is_cut_as_the_dense_one(tmp_path):
    """50 adapters of rank 4 and one that stands out: exact SVD of the dense mean beside the sketch."""
    generator = torch.Generator().manual_seed(0)
    sides = [
        LoRA(torch.randn(90, 4, generator=generator), torch.randn(70, 4, generator=generator))
        for _ in range(55)
    ]
    modules = [
        {NAMES[0]: lora if place else LoRA(20 * lora.write, lora.read)} for place, lora in enumerate(sides)
    ]
    library = [peft_files.AdapterWeights(f"adapter-{place}", one) for place, one in enumerate(modules)]
    rank = 1
    merged = static_adapter(library, Merge("mean"), rank=rank)
    exact = sum(one[NAMES[0]].delta().double() for one in modules) / len(modules)
    values = torch.linalg.svdvals(exact)
    best = math.sqrt(float((values[rank:] ** 2).sum()))
    lost = float(torch.linalg.matrix_norm(exact - merged.modules[NAMES[0]].delta().double()))
    assert best * (1 - SINGLE) <= lost <= best * (1 + 1e-3)
    whole = float(torch.linalg.matrix_norm(exact))
    # the rest is estimated from rank + MORE columns of a flat spectrum: five standard errors of its square
    columns, square = rank + MORE, float((values**2).sum() ** 2 / (values**4).sum())
    error = 5 * math.sqrt(2 / (columns * square))
    assert merged.details["relative_error"] == pytest.approx(lost / whole, rel=error)
    assert merged.details["rank"] == rank


def test_where_factors_are_wide():
    lora = LoRA(torch.randn(100, 300), torch.randn(120, 300))
    assert wide(lora, 1) and not wide(
        LoRA(lora.write[:, : WIDE * (1 + MORE)], lora.read[:, : WIDE * (1 + MORE)]), 1
    )
    assert not wide(LoRA(lora.write[:12], lora.read), 1) and not wide(lora.delta(), 1)
    found = cut(lora, 1)
    assert found.energy == pytest.approx(norm(lora) ** 2, rel=0.5)
    assert distance(lora, found.to(1)) == pytest.approx(math.sqrt(found.lost(1)), rel=0.5)


def test_a_merge_of_many_that_is_not_cut_says_how_much_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 2**25})())
    monkeypatch.setattr("llm_experiments.merges.saving.MANY", 2**10)
    lora = LoRA(torch.randn(4000, 8), torch.randn(1000, 8))
    modules = {f"layers.{n}.up": lora for n in range(100)}
    library = [peft_files.AdapterWeights(str(n), modules) for n in range(3)]
    with pytest.raises(MemoryError, match="a merge of rank 24 in 100 layers"):
        static_adapter(library, Merge("sum"))


# --- the command --------------------------------------------------------------------------------------------


def run(*arguments):
    done = CliRunner().invoke(cli, list(map(str, arguments)), env={"COLUMNS": "300"})
    return (
        done.exit_code,
        done.stdout,
        done.stderr if done.exception is None else f"{done.stderr}{done.exception}",
    )


def test_the_table_the_selection_and_the_merge_of_a_list(folder, tmp_path):
    kept = ("--index", tmp_path / "rows.jsonl")
    status, out, _ = run("pool", folder, *kept)
    assert status == 0
    told = ("6 adapters", "6 refused", "base base: 6 can be merged", "apache-2.0", "refused dora", "sound-4")
    for said in (*told, "the same files: deep/run"):
        assert said in out, out
    status, out, _ = run("pool", folder, *kept, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(lines) == 12 and sum(line["refused"] is None for line in lines) == 6
    chosen, target = tmp_path / "chosen.txt", folder / "sound-1"
    status, out, _ = run(
        "pool", folder, *kept, "--select", "cosine", "--target", target, "--count", 3, "--out", chosen
    )
    assert status == 0 and len(out.splitlines()) == 3
    sources = [line for line in chosen.read_text().splitlines() if not line.startswith("#")]
    assert {Path(source).name for source in sources[:2]} == {"sound-1", "checkpoint-7"}
    status, out, _ = run("merge", f"@{chosen}", "--out", tmp_path / "merged")
    assert status == 0, out
    own = [dense(peft_files.read(source)) for source in sources]
    for name, update in dense(peft_files.read(tmp_path / "merged")).items():
        expected = sum(one.get(name, 0) for one in own) / 3
        assert update == pytest.approx(expected, abs=SINGLE * np.abs(expected).max())
    assert run("check", f"@{chosen}")[0] == 0
    for bad, said in (
        (("--count", 3), "belong to --select"),
        (("--select", "cosine"), "needs an adapter of the target task"),
        (("--select", "nosuch"), "there is no selector"),
        (("--select", "all", "--base", "gpt2"), "no adapter of the pool"),
    ):
        status, _, error = run("pool", folder, *kept, *bad)
        assert status != 0 and said in error
    status, _, error = run("merge", f"@{tmp_path / 'gone'}", "--out", tmp_path / "new")
    assert status != 0 and "no list of adapters" in error


def test_names_of_strangers_are_names_and_lists_hold_any_path(tmp_path):
    """Brackets are no markup, and a # inside a path is a part of it."""
    root = tmp_path / "pool"
    write(root / "x#y", 0, base="[/red]base")
    write(root / "[bold]plain", 1, base="[/red]base")
    kept = ("--index", tmp_path / "rows.jsonl")
    status, out, error = run("pool", root, *kept)
    assert status == 0 and "[bold]plain" in out and "[/red]base" in out, error
    chosen = tmp_path / "chosen.txt"
    assert run("pool", root, *kept, "--select", "all", "--out", chosen)[0] == 0
    assert sorted(map(Path, listed(chosen))) == [root / "[bold]plain", root / "x#y"]
    assert run("check", f"@{chosen}")[0] == 0
    before = chosen.read_bytes()
    status, _, error = run("pool", root, *kept, "--select", "all", "--out", chosen)
    assert status != 0 and "is there already: name a new file" in error and chosen.read_bytes() == before


def test_lists_have_comments_and_refuse_what_they_cannot_hold(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("# all of them\norg/one # the first\r\n\n a/b#c \n#org/two\n")
    assert listed(file) == ["org/one", "a/b#c"]
    for source in ("a #b", "#a", "a\nb", " a"):
        with pytest.raises(AdapterError, match="a list cannot hold"):
            list_line(source)
    assert list_line("a/b#c") == "a/b#c"


def test_rows_of_a_pool_replace_no_other_file(folder, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes\n")
    with pytest.raises(AdapterError, match=r"notes.txt holds something else than rows of a pool"):
        index([str(folder)], notes)
    assert notes.read_text() == "my notes\n"
    with pytest.raises(AdapterError, match="is a folder: name a file"):
        index([str(folder)], tmp_path)


def test_a_target_that_cannot_be_compared_is_refused(members, tmp_path):
    wider = {NAMES[0]: LoRA(torch.ones(65, 1), torch.ones(32, 1))}
    elsewhere = {"model.layers.9.mlp.up_proj": LoRA(torch.ones(64, 1), torch.ones(32, 1))}
    for name, modules in (("wider", wider), ("elsewhere", elsewhere)):
        peft_files.write(tmp_path / name, name, modules, "other")
    for rule in (*DENSE, "distance"):
        with pytest.raises(RuleError, match=r"\(64, 32\) in .*, \(65, 32\) in the target's adapter"):
            select(rule, Selection(members, target=peft_files.read(tmp_path / "wider")))
    for rule in DENSE:
        with pytest.raises(RuleError, match="changes no module that one of these does"):
            select(rule, Selection(members, target=peft_files.read(tmp_path / "elsewhere")))


def test_scores_that_are_no_number_come_last(members):
    @selector("odd")
    def odd(job):
        """Some scores."""
        return [1.0, math.nan, 3.0, 2.0]

    try:
        assert [row.id for row, _ in select("odd", Selection(members))] == [
            members[k].id for k in (2, 3, 0, 1)
        ]
    finally:
        SELECTORS.remove("odd")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no such advice")
def test_the_next_layer_is_asked_for_while_one_is_merged(members, monkeypatch):
    """Every factor is asked for once, at the place where the file has its numbers, and before it is read."""
    seen, read = [], []
    advise, load = os.posix_fadvise, StoredTensor.read

    def advised(handle, begin, size, how):
        with open(handle, "rb", closefd=False) as file:
            file.seek(begin)
            seen.append((os.readlink(f"/proc/self/fd/{handle}"), begin, size, file.read(size)))
        advise(handle, begin, size, how)

    def noted(tensor, device="cpu"):
        read.append((tensor, len(seen)))
        return load(tensor, device)

    monkeypatch.setattr("os.posix_fadvise", advised)
    monkeypatch.setattr(StoredTensor, "read", noted)
    static_adapter(open_members(members), Merge("mean"))
    asked = [(path, begin) for path, begin, _, _ in seen]
    assert len(set(asked)) == len(asked) == 2 * sum(row.count for row in members)
    for tensor, before in read:
        place = asked.index((str(tensor.file), tensor.place[0]))
        assert place < before
        assert seen[place][3] == tensor.load().numpy().tobytes()
    assert read[-1][1] > read[0][1], "not all at once"
