"""Whose files an adapter's are, by the names of their tensors, and what these mean.

    PEFT     base_model.model.<module>.lora_A.weight (rank x in), .lora_B.weight (out x rank)
    mlx-lm   <module>.lora_a (in x rank), .lora_b (rank x out), and one scale for all
    mttl     the same names, with lora_alpha / lora_rank beside the file
    kohya    lora_<module with _ for .>.lora_down.weight, .lora_up.weight, .alpha

PEFT writes the factors of an embedding as lora_embedding_A (rank x tokens) and lora_embedding_B, those of a
parameter that stacks E experts as one lora_A (E rank x in), expert by expert, and one lora_B (out x rank E),
in which the experts lie next to one another within each column of the rank.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from llm_experiments.adapters.tensor_files import StoredTensor
from llm_experiments.adapters.weights import ModuleShape, ModuleUpdate, WholeTensor
from toytransformer.adapters import AdapterError
from toytransformer.arrays import all_finite

#: Wrappers that leave their names in a module's path and are no part of the base.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
PREFIX = "base_model.model."
#: The parts of PEFT's names behind the module: factor, perhaps the adapter's name, weight or bias.
PEFT_KEY = re.compile(
    r"(?P<module>.+?)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.(?P<adapter>[^.]+))??"
    r"(\.(?P<part>weight|bias))?"
)
SIMPLE_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[ab])(\.weight)?")
KOHYA_KEY = re.compile(r"(?P<module>lora_.+?)\.(lora_(?P<factor>down|up)\.weight|(?P<alpha>alpha))")
#: One expert's layer, which newer versions of transformers keep in a parameter of all.
EXPERT = re.compile(r"(?P<experts>.*\.experts)\.\d+\.[^.]+")
#: How the names of image models' parts begin.
DIFFUSERS = re.compile(r"unet\.|text_encoder|lora_unet|transformer\.(single_)?transformer_blocks\.")
#: Modules that PEFT saves as a whole without being asked: new heads, and embeddings of another size.
SAVED = (
    *("score", "classifier", "qa_outputs", "lm_head", "embed_out", "embed_tokens", "embedding", "embeddings"),
    *("wte", "word_embeddings", "tok_embeddings", "embed_in", "shared"),
)


@dataclass(frozen=True)
class StoredUpdate:
    """One module's factors in a file, as they lie there.

    transposed: lora_a is (in, rank) and lora_b (rank, out). place: which expert of how many the factors are
    of.
    """

    module: str
    a: StoredTensor
    b: StoredTensor
    scale: float = 1.0
    bias: StoredTensor | None = None
    kind: str = "linear"
    transposed: bool = False
    place: tuple[int, int] = (0, 1)

    @property
    def shape(self) -> ModuleShape:
        a, b = (self.a.shape[::-1], self.b.shape[::-1]) if self.transposed else (self.a.shape, self.b.shape)
        rank = a[0] // self.place[1]
        return ModuleShape(b[0], a[1], rank, self.scale, self.kind, self.bias is not None)

    def ahead(self) -> None:
        """Have the system begin to read both factors."""
        for factor in (self.a, self.b):
            factor.ahead()

    def load(self, device: str = "cpu") -> ModuleUpdate:
        """The factors in float32. Errors: AdapterError where a number is not finite, or the scale makes it
        so."""
        a, b = self.a.read(device), self.b.read(device)
        if self.transposed:
            a, b = a.T, b.T
        expert, count = self.place
        if count > 1:
            a = a.reshape(count, -1, a.shape[1])[expert].clone()
            b = b.reshape(len(b), -1, count)[:, :, expert].clone()
        bias = None if self.bias is None else self.bias.read(device) * self.scale
        write = b if self.scale == 1 else b * self.scale
        if (write is not b and not all_finite(write)) or (bias is not None and not all_finite(bias)):
            raise AdapterError(
                f"{self.b.file}: lora_B of {self.module} times its scale {self.scale:g} is beyond float32; "
                "scale it down"
            )
        return ModuleUpdate(write, a.T, self.scale, bias, self.kind, b)


@dataclass
class _Pair:
    a: StoredTensor | None = None
    b: StoredTensor | None = None
    bias: StoredTensor | None = None
    alpha: StoredTensor | None = None
    embedding: bool = False


@dataclass(frozen=True)
class Contents:
    """What the tensors of a file are. pairs: the factors by module, checked to be two each."""

    layout: str
    pairs: Mapping[str, _Pair]
    whole: Mapping[str, WholeTensor] = field(default_factory=dict)


def contents(tensors: Mapping[str, StoredTensor], where: Path, saved: Collection[str] = ()) -> Contents:
    """Sort the tensors of one adapter. saved: modules that the settings say are replaced as a whole.

    Errors: AdapterError for tensors that belong to none of the layouts above, or a factor without the other.
    """
    if not tensors:
        raise AdapterError(f"{where} holds no tensors")
    if any(KOHYA_KEY.fullmatch(key) for key in tensors):
        found = _kohya(tensors, where)
    elif any(".lora_A" in key or ".lora_embedding_A" in key for key in tensors):
        found = _peft(tensors, where, saved)
    elif any(SIMPLE_KEY.fullmatch(key) for key in tensors):
        found = _simple(tensors, where)
    else:
        raise AdapterError(f"{where}: {_foreign(next(iter(tensors)))}")
    if not found.pairs:
        raise AdapterError(f"{where} holds no factors of any module")
    for module, pair in found.pairs.items():
        if pair.a is None or pair.b is None:
            factor = ("embedding_" if pair.embedding else "") + ("A" if pair.a is None else "B")
            missing = f"lora_{factor}" + ("" if pair.embedding else ".weight")
            raise AdapterError(f"{where}: {module}.{missing} is not in the file; write the adapter anew")
    return found


def _peft(tensors: Mapping[str, StoredTensor], where: Path, saved: Collection[str]) -> Contents:
    pairs: dict[str, _Pair] = {}
    whole: dict[str, WholeTensor] = {}
    names: set[str] = set()
    if foreign := next((key for key in tensors if DIFFUSERS.match(key)), None):
        raise AdapterError(f"{where}: {_foreign(foreign)}")
    for key, tensor in tensors.items():
        match = PEFT_KEY.fullmatch(key)
        if match is None or (match["part"] is None and not match["embedding"]):
            module, tensor_of_base = _whole(key, tensor, where, saved)
            whole[module] = tensor_of_base
            continue
        names.add(match["adapter"] or "")
        pair = pairs.setdefault(_base_name(match["module"]), _Pair())
        part = "bias" if match["part"] == "bias" else match["factor"].lower()
        if (part == "bias" and match["factor"] == "A") or getattr(pair, part) is not None:
            raise AdapterError(
                f"{where}: {key} is there twice, or is no part of a LoRA; write the adapter anew"
            )
        setattr(pair, part, tensor)
        pair.embedding = bool(match["embedding"])
    if len(names) > 1:
        shown = ", ".join(sorted(name or "(no name)" for name in names))
        raise AdapterError(f"{where} holds several adapters ({shown}); save each in a folder of its own")
    return Contents("PEFT", pairs, whole)


def _base_name(path: str) -> str:
    """A module's name in the base: without PEFT's prefix and what compilers and wrappers put in."""
    parts = path.removeprefix("module.").split(".")
    if parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    return ".".join(part for part in parts if part not in WRAPPERS)


def _whole(key: str, tensor: StoredTensor, where: Path, saved: Collection[str]) -> tuple[str, WholeTensor]:
    name = _base_name(key)
    if "lora_magnitude_vector" in key:
        raise AdapterError(
            f"{where}: {key} belongs to DoRA, which rescales the base's own weights; merge it into its base "
            "with PEFT's merge_and_unload"
        )
    frozen = ".base_layer." in key
    module = name.replace(".modules_to_save.", ".").rpartition(".")[0]
    replaced = any(module == one or module.endswith(f".{one}") for one in (*saved, *SAVED))
    if not frozen and not replaced and not any(f".{one}." in f".{name}" for one in saved):
        raise AdapterError(
            f"{where}: {key} is no factor of a linear layer (…lora_A.weight, …lora_B.weight), no embedding's "
            f"and no head; {_foreign(key)}"
        )
    read = partial(_finite, tensor)
    return name, WholeTensor(tensor.shape, frozen, read)


def _finite(tensor: StoredTensor) -> torch.Tensor:
    """The tensor as it is there, in its own precision, if its numbers are finite."""
    tensor.read()
    return tensor.load()


def _simple(tensors: Mapping[str, StoredTensor], where: Path) -> Contents:
    pairs: dict[str, _Pair] = {}
    for key, tensor in tensors.items():
        match = SIMPLE_KEY.fullmatch(key)
        if match is None:
            raise AdapterError(f"{where}: {key} is no factor of a linear layer (…lora_a, …lora_b)")
        setattr(pairs.setdefault(_base_name(match["module"]), _Pair()), match["factor"], tensor)
    return Contents("lora_a", pairs)


def _kohya(tensors: Mapping[str, StoredTensor], where: Path) -> Contents:
    pairs: dict[str, _Pair] = {}
    for key, tensor in tensors.items():
        match = KOHYA_KEY.fullmatch(key)
        if match is None:
            raise AdapterError(
                f"{where}: {key} is no factor of a linear layer in kohya's layout (…lora_down.weight, "
                "…lora_up.weight, …alpha)"
            )
        pair = pairs.setdefault(match["module"], _Pair())
        setattr(pair, "alpha" if match["alpha"] else {"down": "a", "up": "b"}[match["factor"]], tensor)
    return Contents("kohya", pairs)


def _foreign(key: str) -> str:
    """What files with such a tensor are, as far as the name tells, and what opens them."""
    if DIFFUSERS.match(key):
        return f"{key[:120]!r} is diffusers' name: a LoRA of an image model, which diffusers opens"
    if ".lokr_" in key or ".hada_" in key or ".oft_" in key:
        return f"{key[:120]!r} is of another kind of adapter (LoKr, LoHa, OFT), no product of two"
    if re.search(r"\.(weight|bias)$", key) and "lora" not in key.lower():
        return f"{key[:120]!r} looks like a model's own weight, and adapters are read here"
    return f"{key[:120]!r} is no name of PEFT, mlx-lm, mttl or kohya"


def experts(pair: _Pair, rank: int) -> int:
    """How many experts' factors lie in one pair: as many as its rank holds the adapter's."""
    assert pair.a is not None and pair.b is not None
    rows = pair.a.shape[0] if len(pair.a.shape) == 2 else 0
    return rows // rank if rank and rows > rank and rows % rank == 0 else 1


def updates(
    module: str, pair: _Pair, where: Path, *, scale: float, rank: int | None, transposed: bool, stacked: bool
) -> list[StoredUpdate]:
    """The update of a module, or of each expert in it.

    rank: what the settings say, None where they are silent. stacked: whether it may stack experts.
    Errors: AdapterError where the factors do not fit each other or the settings.
    """
    a, b = pair.a, pair.b
    assert a is not None and b is not None
    inner = (lambda shape: shape[::-1]) if transposed else (lambda shape: shape)
    shapes = inner(a.shape), inner(b.shape)
    if len(a.shape) != 2 or len(b.shape) != 2 or shapes[0][0] != shapes[1][1] or 0 in (*a.shape, *b.shape):
        raise AdapterError(
            f"{where}: the factors of {module} have shapes {b.shape} and {a.shape}; "
            "lora_B (out, rank) and lora_A (rank, in) of a linear layer are needed"
        )
    if not (a.floating and b.floating):
        a.read(), b.read()  # says which kind of numbers it is
    if pair.bias is not None and pair.bias.shape != (shapes[1][0],):
        raise AdapterError(f"{where}: the bias of {module} has shape {pair.bias.shape}, lora_B {b.shape}")
    found = shapes[0][0]
    count = experts(pair, rank) if stacked and rank else 1
    if rank is not None and found != rank * count:
        raise AdapterError(f"{where}: {module} has rank {found}, the settings say r = {rank}")
    kind = "embedding" if pair.embedding else "linear"
    if count == 1:
        return [StoredUpdate(module, a, b, scale, pair.bias, kind, transposed)]
    return [
        StoredUpdate(f"{module}[{expert}]", a, b, scale, None, "expert", transposed, (expert, count))
        for expert in range(count)
    ]


def targets(kinds: Mapping[str, str]) -> set[str]:
    """PEFT's target_modules for modules of these kinds: full names, of one expert's layers the last part.

    A base that stacks its experts has no such layers; PEFT knows them by these names and converts them.
    """
    named = [name for name, kind in kinds.items() if kind != "expert"]
    return {name.rpartition(".")[2] if EXPERT.fullmatch(name) else name for name in named}


def peft_tensors(
    factors: Mapping[str, Sequence[torch.Tensor]], kinds: Mapping[str, str], biased: bool
) -> dict[str, torch.Tensor]:
    """Factors by PEFT's names: (lora_A, lora_B) of every module, and a bias of lora_B where one has it."""
    tensors: dict[str, torch.Tensor] = {}
    stacks: dict[str, dict[int, Sequence[torch.Tensor]]] = {}
    for module, parts in factors.items():
        if kinds[module] == "expert":
            path, _, number = module.rpartition("[")
            stacks.setdefault(path, {})[int(number.removesuffix("]"))] = parts
            continue
        embedding = kinds[module] == "embedding"
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        tensors |= {f"{PREFIX}{module}.{key}": part for key, part in zip(names, parts, strict=False)}
        if biased and not embedding:
            bias = parts[2] if len(parts) > 2 else torch.zeros(len(parts[1]), dtype=parts[1].dtype)
            tensors[f"{PREFIX}{module}.lora_B.bias"] = bias
    for path, experts in stacks.items():
        a, b = (torch.stack([experts[number][part] for number in sorted(experts)]) for part in (0, 1))
        tensors[f"{PREFIX}{path}.lora_A.weight"] = a.flatten(0, 1)
        tensors[f"{PREFIX}{path}.lora_B.weight"] = b.permute(1, 2, 0).flatten(1)
    return tensors
