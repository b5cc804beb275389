"""Where a model's weights go: one GPU, several, or the CPU; and what to say when memory runs out."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil
import torch

from llm_experiments.models.sources import ModelError

#: Share of a GPU's free memory that weights may take; the rest is for activations, caches and adapters.
WEIGHTS_SHARE = 0.8
#: How torch says that memory ran out where it raises a bare RuntimeError.
_SIGNS = ("allocate memory", "not enough memory", "out of memory")


def free_memory() -> dict[str, int]:
    """Bytes free, by device: "cpu", "cuda:0", ..."""
    free = {"cpu": psutil.virtual_memory().available}
    if torch.cuda.is_available():
        free |= {f"cuda:{i}": torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())}
    return free


def gpus_for(device: str, free: Mapping[str, int]) -> list[str]:
    """The GPUs that `device` allows, none for the CPU; ModelError if it names what is not there."""
    gpus = [name for name in free if name != "cpu"]
    if device not in ("auto", "cpu", "cuda", "split", *gpus):
        raise ModelError(f"device={device!r}: choose {', '.join(('auto', 'cpu', 'cuda', 'split', *gpus))}")
    if device in ("cuda", "split") and not gpus:
        raise ModelError(
            f"device={device!r}: torch {torch.__version__} sees no GPU here; use device='cpu', or install a "
            "torch build for your GPU"
        )
    return [] if device == "cpu" else gpus if device in ("auto", "cuda", "split") else [device]


def choose_place(name: str, need: int, device: str, free: Mapping[str, int]) -> str:
    """Where `need` bytes of weights go: "cpu", one GPU ("cuda:1") or "split" over all GPUs.

    One GPU is preferred, if the weights take at most `WEIGHTS_SHARE` of what it has free (`free`, as from
    `free_memory`). On a GPU named outright all of it may be taken. A model is never put partly on the CPU,
    where it would be slow without saying so.
    """
    gpus = gpus_for(device, free)
    share = WEIGHTS_SHARE if gpus and device not in free else 1.0
    places = {place: free[place] for place in gpus or ["cpu"]}
    roomiest = max(places, key=places.__getitem__)
    if device != "split" and need <= share * places[roomiest]:
        return roomiest
    if device not in free and gpus and need <= share * sum(places.values()):
        return "split"
    there = ", ".join(f"{place} has {gib(size)} free" for place, size in places.items())
    raise ModelError(
        f"{name} needs {gib(need)} for its weights and {there}"
        f"{f', of which weights may take {share:.0%}' if share < 1 else ''}; take a smaller model, "
        "dtype='bfloat16', four_bit=True on a GPU, more GPUs (device='split') or a machine with more memory"
    )


def automatic_dtype(gpus: list[str]) -> torch.dtype:
    """bfloat16 where every GPU computes in it (capability 8), else float32."""
    able = bool(gpus) and all(torch.cuda.get_device_capability(gpu)[0] >= 8 for gpu in gpus)
    return torch.bfloat16 if able else torch.float32


def require_four_bit(gpus: list[str]) -> None:
    """ModelError unless bitsandbytes is installed and there is a GPU for it."""
    if not gpus:
        raise ModelError(
            "four_bit=True needs a CUDA GPU, and a device other than 'cpu'; leave it out on a CPU"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("four_bit=True needs bitsandbytes, which is not installed: pip install bitsandbytes")


@contextmanager
def explain_memory(
    doing: str, advice: str = "take a smaller model or batch, or four_bit=True"
) -> Iterator[None]:
    """Turn running out of memory, on a CPU or GPU, into a ModelError that says while doing what."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        there = ", ".join(f"{place} {gib(size)}" for place, size in free_memory().items())
        raise ModelError(f"out of memory while {doing} (free now: {there}); {advice}") from error


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS))


def gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
