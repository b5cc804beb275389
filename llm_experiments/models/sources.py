"""Where a model's files are: hub, folder, GGUF or shipped; what they contain, as a digest.

Whatever the name says, the result is a local folder with a config, a tokenizer and safetensors weights.
Pickled weights (.bin) and code that comes with a model are never read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict

from llm_experiments.models.files import FileError, read_object

if TYPE_CHECKING:
    from transformers import PretrainedConfig

EMBEDDED = Path(__file__).parents[1] / "embedded" / "weights"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
#: Files besides the weights that decide what a model says.
SMALL_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
#: Files that say how a text is cut into tokens, any of which is enough.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "tokenizer_config.json")
#: Most weights that a quantised file keeps in one number: 4 bits each in 32 bits, and some room.
PACKED = 16
_COUNTS_LAYERS = re.compile(r"(^|\.)(num_hidden_layers|num_layers|n_layers?|block_count)$")


class ModelError(ValueError):
    """A model that cannot be found, read, trusted or fitted into memory; the message says what to do."""


@dataclass(frozen=True)
class Source:
    """Files of one model: `id` names it in results, without a path; transformers reads `folder`."""

    id: str
    kind: str  # "embedded", "hub", "folder" or "gguf"
    folder: Path
    digest: str
    revision: str | None = None
    license: str | None = None
    quantisation: str | None = None
    tensors: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict, repr=False)

    def weight_bytes(self, dtype: torch.dtype, four_bit: bool = False) -> int:
        """Memory of the weights in `dtype`; in `four_bit`, matrices but embedding and head take 4.5 bits."""
        return sum(
            int(math.prod(shape) * (4.5 / 8 if four_bit and _is_quantised(name, shape) else dtype.itemsize))
            for name, (shape, _) in self.tensors.items()
        )


def _is_quantised(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and "embed" not in name and "lm_head" not in name


def find(name: str, *, revision: str | None = None, cache: Path | None = None) -> Source:
    """The files of `name`: "embedded", a folder, a .gguf file, or else a hub id (downloaded when not cached).

    `cache` is where downloads and converted GGUF files are kept; by default Hugging Face's own folders
    (HF_HUB_CACHE and HF_ASSETS_CACHE). ModelError if there is nothing, or nothing that may be read.
    """
    if not isinstance(name, str | os.PathLike) or not str(name):
        raise ModelError(f'{name!r} is no model: give "embedded", a hub id, a folder or a .gguf file')
    name = str(name)
    try:
        path = Path(name).expanduser()
        path.exists()
    except (RuntimeError, OSError, ValueError) as error:  # ~ of nobody, too long, a null byte
        raise ModelError(f"{name!r} is neither a model's name nor a path ({error})") from error
    if name == "embedded":
        if not (EMBEDDED / SINGLE).is_file():
            raise ModelError(
                "the embedded model's weights are not there; `python -m llm_experiments pretrain` makes them"
            )
        kind, identity, folder = "embedded", "embedded", EMBEDDED
    elif path.is_file():
        _refuse_revision(name, revision)
        return _converted(path, cache)
    elif path.is_dir():
        kind, identity, folder = "folder", path.resolve().name, path
    elif _looks_like_a_path(name):
        raise ModelError(
            f"there is no folder or file {name!r}; give a folder with config.json and safetensors, "
            "a .gguf file, a hub id such as 'Qwen/Qwen2.5-0.5B-Instruct', or 'embedded'"
        )
    else:
        kind, identity, folder = "hub", name, _downloaded(name, revision, cache)
    if kind != "hub":
        _refuse_revision(name, revision)
    weights = _weight_files(folder, name)
    return Source(
        id=identity,
        kind=kind,
        folder=folder,
        digest=_digest(folder, weights),
        revision=folder.name if kind == "hub" else None,
        license=_license(folder / "README.md"),
        tensors=_tensors(folder, weights),
    )


def require_tokenizer(source: Source) -> None:
    """ModelError where a model's folder has none of the files that tokenizers are read from."""
    if not any((source.folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(
            f"{source.id!r} has no tokenizer ({', '.join(TOKENIZERS[:3])}, ..): save it into the model's "
            "folder with AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
        )


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise ModelError(f"revision={revision!r} is for hub ids; {name!r} is local and has no revisions")


def _looks_like_a_path(name: str) -> bool:
    return name[0] in ".~/" or name.count("/") > 1 or "\\" in name or name.endswith((".gguf", "/"))


def _downloaded(name: str, revision: str | None, cache: Path | None) -> Path:
    """The snapshot folder of a hub id: small files first, then only the weight files the index names."""
    try:
        folder = snapshot(name, revision, cache, ["*.json", *SMALL_FILES, "README.md"])
        weights = _indexed(folder) or [SINGLE]
        if not all((folder / file).is_file() for file in weights):
            snapshot(name, folder.name, cache, weights)
    except ModelError:
        raise
    except Exception as error:  # the hub's errors share no class: bad names, no network, gated, disk full
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ModelError(
            f"{name!r} is neither 'embedded' nor a folder or .gguf file here, and as a hub id"
            f"{'' if revision is None else f' at revision {revision!r}'} it could not be fetched "
            f"({type(error).__name__}: {reason}). Check the spelling; gated models need `hf auth login`. "
            "Without a network, set HF_HUB_OFFLINE=1 and use a model that is in the cache already, a local "
            "folder, or 'embedded', which needs no download"
        ) from error
    return folder


def snapshot(name: str, revision: str | None, cache: Path | None, patterns: list[str]) -> Path:
    """Files at the top of a repository; what is in the cache if the hub cannot be asked."""
    from huggingface_hub import snapshot_download

    fetch = partial(
        snapshot_download,
        name,
        revision=revision,
        cache_dir=None if cache is None else Path(cache) / "hub",
        allow_patterns=patterns,
        ignore_patterns=["*/*"],
    )
    try:
        return Path(fetch())
    except Exception as error:
        try:
            return Path(fetch(local_files_only=True))
        except Exception:
            raise error from None


def _indexed(folder: Path) -> list[str]:
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        named = read_object(index).get("weight_map")
    except FileError as error:
        raise ModelError(f"{error}; fetch it again") from error
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise ModelError(f"{index} is no index of safetensors files (weight_map); fetch it again")
    files = sorted(set(named.values()))
    if not all(file == Path(file).name for file in files):
        raise ModelError(f"{index} names files outside its folder; do not use this model")
    return files


def _weight_files(folder: Path, name: str) -> list[str]:
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{name!r} is an adapter, not a model: load its base model, and the adapter apart")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name!r} has no config.json; a model's folder has it, a tokenizer and safetensors")
    files = _indexed(folder) or [SINGLE]
    missing = [file for file in files if not (folder / file).is_file()]
    if not missing:
        return files
    if pickled := sorted(path.name for path in folder.glob("*.bin")):
        raise ModelError(
            f"{name!r} has its weights as pickles ({', '.join(pickled[:3])}), which can run code when read; "
            "only safetensors are loaded. Where you trust them, convert them with "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER), or take a revision that has "
            "safetensors"
        )
    raise ModelError(f"{name!r} lacks the weights {', '.join(missing[:3])}; only safetensors are loaded")


def _tensors(folder: Path, files: list[str]) -> dict[str, tuple[tuple[int, ...], str]]:
    tensors = {}
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (not a mapping)
                    tensor = opened.get_slice(key)
                    tensors[key] = (tuple(tensor.get_shape()), tensor.get_dtype())
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{folder / file} is damaged or no safetensors file ({error}); fetch it again"
            ) from error
    return tensors


def _digest(folder: Path, weights: list[str]) -> str:
    small = [file for file in SMALL_FILES if (folder / file).is_file()]
    lines = [f"{file} {sha256(folder / file)}\n" for file in sorted([*small, *weights])]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def sha256(path: Path) -> str:
    """Of a file's content, computed once per process; the hub's cache names large files by it already."""
    real = Path(path).resolve()
    if real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", real.name):
        return real.name
    state = real.stat()
    return content_sha256(real, state.st_size, state.st_mtime_ns)


@functools.cache
def content_sha256(path: Path, size: int, changed: int) -> str:
    """Of a file's content; size and time of change tell apart what one path held."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def implausible(config: PretrainedConfig, shapes: Sequence[tuple[int, ...]]) -> str | None:
    """What a configuration says that weights of these shapes cannot be; None if they can.

    Nothing is allocated: the model is made on torch's device without memory. Errors: those of transformers.
    """
    from transformers import AutoModelForCausalLM

    held = sum(map(math.prod, shapes))
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False, attn_implementation="eager")
    if (described := empty.num_parameters()) <= PACKED * held:
        return None
    return (
        f"a model of {described} parameters, and its files hold {held} numbers; one of them belongs to "
        "another model"
    )


def refuse_depth(config: Mapping[str, object], tensors: int) -> None:
    """ValueError where a configuration, not yet taken for one, counts more layers than there are tensors."""
    for key, value in config.items():
        if isinstance(value, dict):
            refuse_depth(value, tensors)
        elif isinstance(value, int | float) and _COUNTS_LAYERS.search(key) and value > tensors:
            raise ValueError(f"{key} is {value}, and its files hold {tensors} tensors")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers, which would break into a run's own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _license(card: Path) -> str | None:
    """What the head of a model card says (`license:`, or `license_name:` where that is "other")."""
    if not card.is_file():
        return None
    head = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)
    pattern = re.compile(r"^(license|license_name): *(\S+)", flags=re.MULTILINE)
    said = dict(pattern.findall(head.group(1))) if head else {}
    return said.get("license_name") or said.get("license")


# --- GGUF ----------------------------------------------------------------------------------


class Noted(TypedDict):
    """What source.json says of a converted file: its hash, terms, kind, and the sizes of what was written."""

    gguf: str
    license: str | None
    quantisation: str
    files: dict[str, int]


def _converted(file: Path, cache: Path | None) -> Source:
    """A GGUF file as safetensors in float32 (exact), converted once and kept under the file's own hash.

    The digest is that of the GGUF file: the same on every machine, whichever version converted it.
    """
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ModelError(
                f"{str(file)!r} is no GGUF file; give a folder, a .gguf file, a hub id or 'embedded'"
            )
    if cache is None:
        from huggingface_hub import cached_assets_path

        root = cached_assets_path(library_name="lora-limits", namespace="gguf").parent
    else:
        root = Path(cache) / "gguf"
    content = sha256(file)
    folder, unfinished = root / content[:32], root / f"{content[:32]}.partial"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{content[:32]}.lock"):
            if not folder.is_dir():
                shutil.rmtree(unfinished, ignore_errors=True)  # what a killed conversion left
                unfinished.mkdir()
                convert(file, content, unfinished)
                unfinished.rename(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ModelError(
            f"{file.name} could not be converted into {root} ({error}), where it takes four bytes per "
            "parameter; name another folder with cache=..., or set HF_ASSETS_CACHE"
        ) from error
    try:
        noted = TypeAdapter(Noted).validate_python(read_object(folder / "source.json"))
        changed = [name for name, size in noted["files"].items() if (folder / name).stat().st_size != size]
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} is damaged ({error}); delete it to convert {file.name} anew") from error
    if changed:
        raise ModelError(
            f"{folder} has changed ({', '.join(changed)}); delete it to convert {file.name} anew"
        )
    return Source(
        id=file.stem,
        kind="gguf",
        folder=folder,
        digest=hashlib.sha256(f"gguf {content}\n".encode()).hexdigest()[:16],
        license=noted["license"],
        quantisation=noted["quantisation"],
        tensors=_tensors(folder, _weight_files(folder, file.name)),
    )


def convert(file: Path, content: str, out: Path) -> None:
    try:
        import gguf
    except ImportError as error:
        raise ModelError("reading a .gguf file needs the package gguf: pip install gguf") from error
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        reader = gguf.GGUFReader(file)
        kinds = ("bos", "eos", "padding", "unknown")
        keys = [
            "general.license",
            "general.file_type",
            *(f"tokenizer.ggml.{kind}_token_id" for kind in kinds),
        ]
        fields = {key: reader.get_field(key) for key in keys}
        said = {key: None if found is None else found.contents() for key, found in fields.items()}
        with quiet(), tempfile.TemporaryDirectory() as alone:
            # what lies beside the file is not the model: a config there could ask for its own code to be run
            os.symlink(file.resolve(), Path(alone, "model.gguf"))
            where: dict[str, Any] = {"pretrained_model_name_or_path": alone, "gguf_file": "model.gguf"}
            where |= {"local_files_only": True, "trust_remote_code": False}
            counts = {key: field.contents() for key, field in reader.fields.items() if "block_count" in key}
            refuse_depth(counts, len(reader.tensors))
            config = AutoConfig.from_pretrained(**where)
            if problem := implausible(config, [tuple(map(int, tensor.shape)) for tensor in reader.tensors]):
                raise ValueError(f"it describes {problem}")
            tokenizer = AutoTokenizer.from_pretrained(**where)
            for kind, role in zip(kinds, ("bos", "eos", "pad", "unk"), strict=True):
                if (token := said[f"tokenizer.ggml.{kind}_token_id"]) is not None:
                    # transformers 5.17 takes a default where the file says 0
                    setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(int(token)))
            model = AutoModelForCausalLM.from_pretrained(
                **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
    except OSError:
        raise
    except Exception as error:  # of a damaged file, anything
        raise ModelError(
            f"{file.name} cannot be converted ({type(error).__name__}: {error}): the file is damaged, or "
            "transformers does not read this architecture from GGUF; give the model's folder or hub id"
        ) from error
    names: dict[object, str] = {int(kind): kind.name for kind in gguf.LlamaFileType}
    noted: Noted = {
        "gguf": content,
        "license": said["general.license"],
        "quantisation": f"gguf {names.get(said['general.file_type'], 'of a kind not stated')}, dequantised",
        "files": {path.name: path.stat().st_size for path in sorted(out.iterdir())},
    }
    (out / "source.json").write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
    for path in out.iterdir():
        with path.open("rb") as written:
            os.fsync(written.fileno())
