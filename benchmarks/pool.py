"""A pool of adapters of an 8B model: indexed, selected from and merged, against reading alone.

    python -m benchmarks.pool --folder DIR [--adapters 1000] [--blocks 2] [--json FILE]

Makes the adapters first: rank 16 on the seven linear layers of each of 32 blocks of Llama-3.1-8B, in bf16,
84 MB each. Only the first --blocks blocks hold numbers, the rest of each file is a hole, so that a thousand
fit on a disk; headers and sizes are whole. Every stage runs in a process of its own with cold files: what is
measured are the blocks with numbers.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.measure import measure
from toytransformer.compositions.io import provenance, replace_file

#: Llama-3.1-8B: (out, in) of the linear layers of a block, and how many blocks.
LAYERS = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
BLOCKS, RANK, SELECTED = 32, 16, 30
CODE = tuple(Path(__file__).parents[1] / name for name in ("llm_experiments", "benchmarks"))


def module_names(blocks: int) -> list[str]:
    """The linear layers of the first blocks."""
    return [f"model.layers.{block}.{layer}" for block in range(blocks) for layer in LAYERS]


def header() -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The beginning of every adapter's file, and the range of bytes of each tensor behind it."""
    entries, ranges, end = {}, {}, 0
    for name in module_names(BLOCKS):
        out, inside = LAYERS[name.split(".", 3)[3]]
        for factor, shape in (("A", (RANK, inside)), ("B", (out, RANK))):
            key, begin = f"base_model.model.{name}.lora_{factor}.weight", end
            end += 2 * shape[0] * shape[1]
            entries[key] = {"dtype": "BF16", "shape": shape, "data_offsets": (begin, end)}
            ranges[key] = begin, end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, ranges


def make(folder: Path, adapters: int, blocks: int) -> None:
    """Write the adapters that are not there yet."""
    import torch

    begin, ranges = header()
    keys = [key for key in ranges if int(key.split(".")[4]) < blocks]
    numbers, whole = max(ranges[key][1] for key in keys), max(end for _, end in ranges.values())
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none",
              "base_model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct"}  # fmt: skip
    for number in range(adapters):
        one = folder / f"adapter-{number:04}"
        file = one / "adapter_model.safetensors"
        if (one / "adapter_config.json").is_file():
            continue
        one.mkdir(parents=True, exist_ok=True)
        drawn = torch.randn(numbers // 2, generator=torch.Generator().manual_seed(number))
        with file.open("wb") as opened:
            opened.write(begin)
            opened.write((0.02 * drawn).to(torch.bfloat16).view(torch.int16).numpy().tobytes())
            opened.truncate(len(begin) + whole)
        (one / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        (one / "adapter_config.json").write_text(json.dumps(config))


def cold(folder: Path) -> None:
    """Let the system forget what it has read of the files."""
    for file in folder.glob("*/*"):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def indexing(folder: str) -> Callable[[], np.ndarray]:
    from llm_experiments.pools.index import index

    return lambda: np.array(len(index([folder], Path(folder) / "pool.jsonl")))


def selecting(folder: str, blocks: int) -> Callable[[], np.ndarray]:
    """By cosine to the last adapter, over the blocks with numbers."""
    from llm_experiments.adapters.reader import opened
    from llm_experiments.pools.index import read_index
    from llm_experiments.pools.selectors import Selection, select

    names = module_names(blocks)

    def work() -> np.ndarray:
        rows = read_index(Path(folder) / "pool.jsonl")
        job = Selection(rows, target=opened(rows[-1].source).only(names), names=frozenset(names))
        chosen = select("cosine", job, min(SELECTED, len(rows)))
        return np.array([score for _, score in chosen])

    return work


def merging(folder: str, blocks: int) -> Callable[[], np.ndarray]:
    """The mean of all adapters, cut to their rank."""
    import torch

    from llm_experiments.merges.saving import static_adapter
    from llm_experiments.pools.index import read_index
    from llm_experiments.pools.table import open_members
    from toytransformer.compositions import Merge

    torch.set_num_threads(len(os.sched_getaffinity(0)))

    def work() -> np.ndarray:
        library = [
            one.only(module_names(blocks)) for one in open_members(read_index(Path(folder) / "pool.jsonl"))
        ]
        details = static_adapter(library, Merge("mean"), rank=RANK, dtype=torch.bfloat16).details
        return np.array([details["relative_error"], details["rank"]])

    return work


def reading(folder: str, blocks: int) -> Callable[[], np.ndarray]:
    """The same bytes in the order of the merge, layer by layer through all files, and nothing else."""
    begin, ranges = header()
    files = sorted(Path(folder).glob("*/adapter_model.safetensors"))

    def work() -> np.ndarray:
        total = 0
        for name in module_names(blocks):
            for file in files:
                with file.open("rb") as opened:
                    for factor in "AB":
                        first, last = ranges[f"base_model.model.{name}.lora_{factor}.weight"]
                        opened.seek(len(begin) + first)
                        total += len(opened.read(last - first))
        return np.array(total)

    return work


def stages(folder: Path, blocks: int) -> Iterator[dict[str, Any]]:
    """One row a stage, as it is done: seconds, peak memory, MB of factors and MB/s."""
    _, ranges = header()
    one = sum(end - first for key, (first, end) in ranges.items() if int(key.split(".")[4]) < blocks)
    count = len(list(folder.glob("*/adapter_model.safetensors")))
    begin = len(header()[0])
    plain = None
    for name, prepare, arguments, size in (
        ("reading alone", reading, (str(folder), blocks), count * one),
        ("index", indexing, (str(folder),), count * begin),
        ("index again", indexing, (str(folder),), count * begin),
        ("select by cosine", selecting, (str(folder), blocks), count * one),
        ("merge", merging, (str(folder), blocks), count * one),
    ):
        if name != "index again":
            cold(folder)
        if name == "index":
            (folder / "pool.jsonl").unlink(missing_ok=True)
        measured = measure(prepare, *arguments, repeats=0)
        rate = size / 1e6 / measured.first
        plain = plain or rate
        yield {
            "stage": name,
            "adapters": count,
            "blocks": blocks,
            "seconds": measured.first,
            "processor_seconds": measured.processor[0],
            "peak_bytes": measured.peak,
            "megabytes": size / 1e6,
            "megabytes_a_second": rate,
            "of_reading_alone": rate / plain,
            "value": np.atleast_1d(measured.value).tolist()[:3],
        }


@click.command()
@click.option("--folder", required=True, type=click.Path(path_type=Path), help="Where the adapters are made.")
@click.option("--adapters", type=click.IntRange(min=2), default=1000, show_default=True)
@click.option("--blocks", type=click.IntRange(1, BLOCKS), default=2, show_default=True, help="With numbers.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Keep the rows.")
def main(folder: Path, adapters: int, blocks: int, json_file: Path | None) -> None:
    """Index, select from and merge a pool of adapters of an 8B model, each against reading alone."""
    start = time.perf_counter()
    make(folder, adapters, blocks)
    held = sum(file.stat().st_blocks * 512 for file in folder.glob("*/adapter_model.safetensors"))
    said = sum(file.stat().st_size for file in folder.glob("*/adapter_model.safetensors"))
    click.echo(
        f"{adapters} adapters of {said / 1e9:.1f} GB, {held / 1e9:.1f} GB of them on the disk, "
        f"made in {time.perf_counter() - start:.0f} s"
    )
    rows = []
    for row in stages(folder, blocks):
        rows.append(row)
        click.echo(
            f"{row['stage']:<18} {row['seconds']:8.1f} s ({row['processor_seconds']:.1f} of processors) "
            f"{row['megabytes_a_second']:8,.0f} MB/s ({row['of_reading_alone']:.2f} of reading alone), "
            f"at most {row['peak_bytes'] / 1e9:.2f} GB of memory"
        )
    if json_file:
        packages = ("torch", "safetensors", "numpy")
        report = {"provenance": provenance(CODE, packages), "processors": os.cpu_count(), "rows": rows}
        replace_file(json_file, [json.dumps(report, indent=1, allow_nan=False) + "\n"])


if __name__ == "__main__":
    main()
