"""Static merges against PEFT's add_weighted_adapter: the same two adapters of rank 16, in memory, no files.

Ours is `saving.static_adapter`. It adds factors up in the precision that is written, as PEFT does; where it
chooses among entries or cuts by an SVD it computes in double precision, rounds, and measures what that loses,
which PEFT does not. PEFT makes a new layer, whose factors are drawn at random before they are overwritten.
Neither touches files. PEFT is given thin SVDs (svd_full_matrices=False; its default forms a square U). Layers
have half of both sides of Qwen2.5-7B's down projection, where a dense SVD takes seconds; at full size it
takes eight times as long, ours four.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from benchmarks.case import Array, Case, Difference, Side, Work

#: Our rule -> PEFT's combination_type, and whether both cut a dense matrix by an SVD.
RULES = {
    "sum": ("cat", False),
    "linear-peft": ("linear", False),
    "ties-factors": ("ties", False),
    "sum-truncated": ("svd", True),
    "magnitude-prune": ("magnitude_prune_svd", True),
    "ties": ("ties_svd", True),
}
RANK, DENSITY, WEIGHTS = 16, 0.2, (0.7, 0.4)


def factors(out: int, inn: int) -> list[tuple[Array, Array]]:
    """Two (B, A^T) in float32, whose singular values fall."""
    rng, falling = np.random.default_rng(0), 0.9 ** np.arange(RANK)
    pairs = [(rng.normal(size=(out, RANK)) * falling, rng.normal(size=(inn, RANK))) for _ in WEIGHTS]
    return [(write.astype(np.float32), read.astype(np.float32)) for write, read in pairs]


def ours(out: int, inn: int, rule: str) -> Work:
    import torch

    from llm_experiments.adapters.weights import AdapterWeights
    from llm_experiments.merges.saving import LARGEST, static_adapter
    from toytransformer.adapters import LoRA
    from toytransformer.compositions import Merge
    from toytransformer.merging import RULES as KNOWN

    torch.set_num_threads(1)
    pairs = [tuple(map(torch.from_numpy, pair)) for pair in factors(out, inn)]
    library = [AdapterWeights(str(i), {"up_proj": LoRA(*pair)}) for i, pair in enumerate(pairs)]
    options = {"density": DENSITY} if "density" in KNOWN[rule].options else {}

    def work() -> Array:
        merged = static_adapter(library, Merge(rule, WEIGHTS, options), rank=LARGEST).modules["up_proj"]
        return np.concatenate([merged.write.numpy(), merged.read.numpy()])

    return work


def peft(out: int, inn: int, rule: str) -> Work:
    import torch
    from peft import LoraConfig, PeftModel

    torch.set_num_threads(1)

    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up_proj = torch.nn.Linear(inn, out, bias=False)

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["up_proj"])
    model = PeftModel(cast(Any, One()), config, adapter_name="0")
    model.add_adapter("1", config)
    layer = cast(Any, model).base_model.model.up_proj
    for name, (write, read) in enumerate(factors(out, inn)):
        layer.lora_B[str(name)].weight.data = torch.from_numpy(write)
        layer.lora_A[str(name)].weight.data = torch.from_numpy(read.T.copy())
    kind, add = RULES[rule][0], cast(Any, model.base_model).add_weighted_adapter

    def work() -> Array:
        if "merged" in model.peft_config:
            model.delete_adapter("merged")
        add(["0", "1"], list(WEIGHTS), "merged", kind, svd_full_matrices=False, density=DENSITY)
        write, read = layer.lora_B["merged"].weight.data, layer.lora_A["merged"].weight.data.T
        scale = layer.scaling["merged"]
        return np.concatenate([scale * write.numpy(), read.numpy()])

    return work


def losses(out: int, inn: int, rule: str) -> Difference:
    """How much more of the exact merge ours loses than PEFT's exact truncation: a thousandth at most."""

    def difference(ours: Array, plain: Array) -> tuple[float, float]:
        from toytransformer.adapters import LoRA
        from toytransformer.compositions import Merge
        from toytransformer.merging import StaticMerge, merge
        from toytransformer.merging.merged import concatenated

        adapters = [LoRA(*pair) for pair in factors(out, inn)]
        if rule == "sum-truncated":
            exact = concatenated(adapters, WEIGHTS).delta()
        else:
            merged = merge(adapters, Merge(rule, WEIGHTS, {"density": DENSITY}))
            assert isinstance(merged, StaticMerge)
            exact = merged.delta()
        mine, other = (float(np.linalg.norm(exact - both[:out] @ both[out:].T)) for both in (ours, plain))
        return (mine - other) / other, 1e-3

    return difference


def updates(out: int, inn: int) -> Difference:
    """|ours - plain| / |plain|, up to float32's rounding in sums over both ranks."""

    def difference(ours: Array, plain: Array) -> tuple[float, float]:
        mine, other = (both[:out] @ both[out:].T for both in (ours, plain))
        apart = float(np.linalg.norm(mine - other) / np.linalg.norm(other))
        return apart, 64 * float(np.finfo(np.float32).eps)

    return difference


def cases(small: bool = False) -> Iterator[Case]:
    """Each rule that both have; what is cut by an SVD should be five times as fast, the others as fast."""
    out, inn = (96, 64) if small else (18944 // 2, 3584 // 2)
    for rule, (kind, cuts) in RULES.items():
        yield Case(
            "merging",
            f"{rule} of 2 adapters {out:,} x {inn:,} of rank {RANK}; plain is PEFT's {kind!r}, apart is "
            + ("how much more is lost than by it" if cuts else "|ours - plain| / |plain|"),
            Side(ours, (out, inn, rule)),
            Side(peft, (out, inn, rule), repeats=1 if cuts and not small else 5),
            losses(out, inn, rule) if cuts else updates(out, inn),
            ratio=5 if cuts else 1,
        )
