"""Language models, ready to be adapted and asked: frozen, in evaluation mode, named by what they contain.

    loaded = load("embedded")                             # shipped; needs no network
    loaded = load("Qwen/Qwen2.5-7B-Instruct")             # a hub id: cached, else downloaded
    loaded = load("smollm2-135m.gguf", dtype="float32")   # converted once to safetensors
    prompt_text(loaded, "Where does Ann live?"), target_text(loaded, "Ann lives in Rome.")

Only safetensors are read, and no code that comes with a model is run. `sources` finds the files, `devices`
chooses where they go, `prompts` frames questions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

from llm_experiments.models import devices
from llm_experiments.models.devices import explain_memory
from llm_experiments.models.files import read_object
from llm_experiments.models.handle import Form, LoadedModel, embedding
from llm_experiments.models.known import KNOWN_MODELS
from llm_experiments.models.prompts import form_of
from llm_experiments.models.sources import ModelError, Source, find, implausible, quiet, refuse_depth

if TYPE_CHECKING:
    from llm_experiments.embedded.corpus import BaseWorld

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    four_bit: bool = False,
    revision: str | None = None,
    system: str | None = None,
    cache: Path | None = None,
) -> LoadedModel:
    """Load "embedded", a hub id, a folder, or a .gguf file; ModelError says what stands in the way.

    `dtype`: float32, bfloat16, float16, or "auto": bfloat16 on GPUs that compute in it (capability 8), else
    float32.
    `device`: "cpu", "cuda:0" and so on, "cuda" (the GPU with most memory free, or all of them if that is too
    small), "split" (all GPUs), or "auto" ("cuda" where there is a GPU).
    `four_bit`: nf4 by bitsandbytes, on a GPU.
    `revision`: branch, tag or commit of a hub id.
    `system`: a system message for every prompt; "" leaves out the one that some templates add by themselves.
    `cache`: where downloads and converted GGUF files are kept, if not in Hugging Face's folders.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"dtype={dtype!r}: choose auto, {', '.join(DTYPES)}")
    free = devices.free_memory()
    gpus = devices.gpus_for(device, free)
    if four_bit:
        devices.require_four_bit(gpus)
    source = find(name, revision=revision, cache=cache)
    precision = devices.automatic_dtype(gpus) if dtype == "auto" else DTYPES[dtype]
    need = source.weight_bytes(precision, four_bit)
    place = devices.choose_place(source.id, need, device, free)
    tokenizer = _tokenizer(source)
    form = form_of(tokenizer, system)
    with explain_memory(f"loading {source.id} ({devices.gib(need)} of weights) on {place}"), quiet():
        _require_plausible(source)
        model = _model(source, precision, place, four_bit, free)
    _check_vocabulary(source, model, tokenizer)
    _settle(model, tokenizer, form, source.id)
    known = KNOWN_MODELS.get(source.id)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        id=source.id,
        digest=_digest(source, system),
        device=embedding(model).device,
        dtype=precision,
        form=form,
        info={
            "architecture": model.config.model_type,
            "parameters": model.num_parameters(),
            "revision": source.revision,
            "chat": form.chat,
            "system": system,
            "quantisation": "nf4" if four_bit else source.quantisation or _prequantised(model),
            "license": known.license if known else source.license,
            "source": source.kind,
            "dtype": str(precision).removeprefix("torch."),
            "device": ", ".join(sorted({str(parameter.device) for parameter in model.parameters()})),
            "weight_bytes": need,
            "attention": model.config._attn_implementation,
        },
        base_world=_base_world(source.folder / "world.json"),
    )


def _digest(source: Source, system: str | None) -> str:
    if system is None:
        return source.digest
    return hashlib.sha256(f"{source.digest} system {system}".encode()).hexdigest()[:16]


def _tokenizer(source: Source) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer as its file says, padding on the left, with a pad token that has an embedding already.

    Not AutoTokenizer where there is a tokenizer.json: for some architectures (qwen2) that keeps only the
    vocabulary and puts its own splitting rules in place of the file's.
    """
    exact = (source.folder / "tokenizer.json").is_file()
    reader = transformers.PreTrainedTokenizerFast if exact else transformers.AutoTokenizer
    try:
        tokenizer = reader.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise ModelError(
            f"{source.id}: its tokenizer cannot be read ({type(error).__name__}: {_first_line(error)}); the "
            "folder needs tokenizer.json and tokenizer_config.json"
        ) from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        vocabulary = tokenizer.get_vocab()
        usual = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "<|pad|>", "[PAD]")
        there = [token for token in usual if token in vocabulary and token != tokenizer.eos_token]
        tokenizer.pad_token = there[0] if there else tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"{source.id}: the tokenizer has no pad, unknown or end token; name one in its config"
        )
    return tokenizer


def _require_plausible(source: Source) -> None:
    """ModelError where config.json describes another model than the files hold, before memory is taken."""
    try:
        refuse_depth(read_object(source.folder / "config.json"), len(source.tensors))
        config = transformers.AutoConfig.from_pretrained(
            source.folder, trust_remote_code=False, local_files_only=True
        )
        problem = implausible(config, [shape for shape, _ in source.tensors.values()])
    except Exception as error:  # a config is a program's input: it may hold anything
        raise _unreadable(source, error) from error
    if problem:
        raise ModelError(f"{source.id}: config.json describes {problem}")


def _unreadable(source: Source, error: BaseException) -> ModelError:
    return ModelError(
        f"{source.id} cannot be loaded ({type(error).__name__}: {_first_line(error)}). It has to be a "
        f"causal language model that transformers {transformers.__version__} knows by itself: code that "
        "comes with a model is not run"
    )


def _model(
    source: Source, dtype: torch.dtype, place: str, four_bit: bool, free: Mapping[str, int]
) -> transformers.PreTrainedModel:
    options: dict[str, object] = {}  # whatever from_pretrained takes
    if place == "split":
        gpus = {name: size for name, size in free.items() if name != "cpu"}
        options["device_map"] = "auto"
        options["max_memory"] = {int(name.split(":")[1]): int(0.9 * size) for name, size in gpus.items()}
    elif place != "cpu":
        options["device_map"] = {"": place}
    if four_bit:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
    options |= {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    options |= {"trust_remote_code": False, "local_files_only": True}
    read: Callable[..., tuple[transformers.PreTrainedModel, dict[str, set[str]]]]
    read = transformers.AutoModelForCausalLM.from_pretrained  # type: ignore[assignment]  # with its report
    try:  # the attention is said here, so that no config can ask for a kernel from the hub
        try:
            model, report = read(source.folder, attn_implementation="sdpa", **options)
        except ValueError as error:
            if "does not support an attention implementation" not in str(error):  # such as Gemma 2
                raise
            model, report = read(source.folder, attn_implementation="eager", **options)
    except Exception as error:
        if devices.is_memory(error):
            raise
        if "ignore_mismatched_sizes" not in str(error):
            raise _unreadable(source, error) from error
        raise ModelError(
            f"{source.id}: the weights do not have the shapes that config.json says; one of them belongs to "
            f"another model ({_first_line(error)})"
        ) from error
    if absent := sorted(report["missing_keys"]):
        raise ModelError(
            f"{source.id}: {len(absent)} weights are not in its files and would be random, among them "
            f"{', '.join(absent[:3])}; the download is incomplete or config.json belongs to another model"
        )
    kinds = {parameter.device.type for parameter in model.parameters()}
    if place != "cpu" and kinds != {"cuda"}:
        raise ModelError(
            f"{source.id} does not fit: parts of it went to {', '.join(sorted(kinds - {'cuda'}))}; take "
            "four_bit=True, a smaller model or more GPUs"
        )
    return model


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def _check_vocabulary(
    source: Source,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
    rows = len(embedding(model))
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > rows:
        raise ModelError(
            f"{source.id}: the tokenizer has {needed} tokens and the model embeds {rows}; one of them "
            "belongs to another model"
        )


def _settle(
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    form: Form,
    name: str,
) -> None:
    """Freeze; decode greedily by default, since some files set temperatures and repetition penalties."""
    model.requires_grad_(False)
    model.eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config._name_or_path = name
    given = model.generation_config.eos_token_id if model.generation_config else None
    ends = tokenizer(form.ending, add_special_tokens=False)["input_ids"][-1:]
    ends += [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ends += given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(end, int) for end in ends):
        raise ModelError(f"{name}: eos_token_id is {given!r} in its generation config; token ids are numbers")
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        eos_token_id=list(dict.fromkeys(ends)),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def _prequantised(model: transformers.PreTrainedModel) -> str | None:
    said = getattr(model.config, "quantization_config", None)
    if said is None:
        return None
    method = said.get("quant_method") if isinstance(said, dict) else getattr(said, "quant_method", None)
    return str(getattr(method, "value", method))


def _base_world(file: Path) -> BaseWorld | None:
    if not file.is_file():
        return None
    from llm_experiments.embedded.corpus import BaseWorld, WorldError

    try:
        return BaseWorld.read(file)
    except WorldError as error:
        raise ModelError(str(error)) from error
