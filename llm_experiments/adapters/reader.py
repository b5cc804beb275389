"""Any adapter's files as `AdapterWeights`: `opened` reads one module at a time, `read` all at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_experiments.adapters import layouts, peft_settings
from llm_experiments.adapters.layouts import Contents, StoredUpdate
from llm_experiments.adapters.locate import EXTRA, Located, locate
from llm_experiments.adapters.peft_settings import shown
from llm_experiments.adapters.tensor_files import StoredTensor, plain_pickle, stored_tensors
from llm_experiments.adapters.weights import AdapterWeights, ModuleUpdate, StoredModules
from llm_experiments.models.files import FileError, read_object
from toytransformer.adapters import AdapterError


def opened(source: str | os.PathLike[str], *, name: str | None = None, device: str = "cpu") -> AdapterWeights:
    """The adapter that `source` names (see `locate`), its factors left in the file until they are asked for.

    What is read at once is its settings and the shapes of its tensors. The factors come in float32 on
    `device`, the scale s multiplied into `write`. name: defaults to the one it was written under, else the
    folder's. Errors: AdapterError for a missing, damaged or unsafe file, factors that do not fit each other,
    and every setting under which the update is not s lora_B lora_A; for numbers that are not finite, when
    they are read.
    """
    found = locate(source)
    config = {} if found.config is None else read_settings(found.config)
    extra = found.folder / EXTRA
    details = read_settings(extra) if extra.exists() else {}
    return described(found, stored_tensors(found.weights), config, details, name=name, device=device)


def described(
    found: Located,
    tensors: Mapping[str, StoredTensor],
    config: Mapping[str, Any],
    details: Mapping[str, Any],
    *,
    name: str | None = None,
    device: str = "cpu",
) -> AdapterWeights:
    """The adapter that these tensors and settings are, wherever they come from. Errors: as `opened`."""
    _require_text(found.folder / EXTRA, details, ("name", "base_digest"))
    where = found.weights[0] if found.config is None else found.folder
    saved = config.get("modules_to_save") or ()
    if not isinstance(saved, list | tuple) or not all(isinstance(one, str) for one in saved):
        raise AdapterError(f"{where}: modules_to_save is {shown(saved)}; it must be names of modules")
    contents = layouts.contents(tensors, where, saved)
    if contents.layout == "PEFT":
        layout, stored = "PEFT", _of_peft(contents, config, found)
    elif contents.layout == "kohya":
        layout, stored = "kohya", _of_kohya(contents, where)
    else:
        layout, config, stored = _of_lora_a(contents, config, found)
    by_name = {update.module: update for update in sorted(stored, key=lambda update: update.module)}

    def load(module: str) -> ModuleUpdate:
        return by_name[module].load(device)

    shapes = {module: update.shape for module, update in by_name.items()}
    modules = StoredModules(shapes, load, lambda module: by_name[module].ahead())
    return AdapterWeights(
        name or details.get("name") or found.name, modules, config, details, layout, contents.whole
    )


def read(source: str | os.PathLike[str], *, name: str | None = None, device: str = "cpu") -> AdapterWeights:
    """As `opened`, with all factors in memory, and so looked at."""
    return opened(source, name=name, device=device).loaded()


def _of_peft(contents: Contents, config: Mapping[str, Any], found: Located) -> list[StoredUpdate]:
    if not config:
        raise AdapterError(
            f"{found.folder / 'adapter_config.json'} is missing: without it the scale of "
            f"{found.weights[0].name} is not known; put PEFT's settings beside it"
        )
    scales = peft_settings.scaling(config, found.folder)
    _require_text(
        found.folder / "adapter_config.json", config, ("base_model_name_or_path", "revision", "task_type")
    )
    saved = config.get("modules_to_save") or ()
    if saved and not any(f".{one}." in f".{key}" for one in saved for key in contents.whole):
        raise AdapterError(
            f"{found.folder}: modules_to_save names {shown(list(saved))}, which the file does not hold; "
            "write the adapter anew"
        )
    parameters = config.get("target_parameters") or []
    if not isinstance(parameters, list | tuple) or not all(isinstance(one, str) for one in parameters):
        raise AdapterError(f"{found.folder}: target_parameters is {shown(parameters)}; it must be names")
    biased = config.get("lora_bias") or False
    updates: list[StoredUpdate] = []
    for module, pair in contents.pairs.items():
        if bool(biased) != (pair.bias is not None):
            raise AdapterError(
                f"{found.folder}: lora_bias is {shown(biased)}, and lora_B of {module} has "
                f"{'no' if pair.bias is None else 'a'} bias in the file; write the adapter anew"
            )
        # of a parameter the path has one `base_layer` for each further one that the module's wrapper holds
        path = module.replace(".base_layer", "")
        held = [
            one.rpartition(".")[2] for one in parameters if f"{path}.{one.rpartition('.')[2]}".endswith(one)
        ]
        if held and any(scales.named(f"{path}.{parameter}") for parameter in held):
            raise AdapterError(
                f"{found.folder}: rank_pattern or alpha_pattern name a parameter of {path}, and which of its "
                "factors that is cannot be told from the file"
            )
        updates += layouts.updates(
            module,
            pair,
            found.folder,
            scale=scales.scale(path),
            rank=scales.rank_of(path),
            transposed=False,
            stacked=bool(held),
        )
    return updates


def _of_kohya(contents: Contents, where: Path) -> list[StoredUpdate]:
    updates: list[StoredUpdate] = []
    for module, pair in contents.pairs.items():
        assert pair.a is not None
        rank = pair.a.shape[0] if pair.a.shape else 0
        alpha = float(rank)
        if pair.alpha is not None:
            if pair.alpha.shape not in ((), (1,)):
                raise AdapterError(
                    f"{where}: alpha of {module} has shape {pair.alpha.shape}; it is one number"
                )
            alpha = float(pair.alpha.read())
        if not rank or not 0 < alpha <= peft_settings.LARGEST:
            raise AdapterError(f"{where}: {module} has rank {rank} and alpha {alpha:g}; both are above 0")
        updates += layouts.updates(
            module, pair, where, scale=alpha / rank, rank=None, transposed=False, stacked=False
        )
    return updates


def _of_lora_a(
    contents: Contents, config: Mapping[str, Any], found: Located
) -> tuple[str, dict[str, Any], list[StoredUpdate]]:
    """mlx-lm's files, whose settings say the scale, and mttl's, whose notes beside the file do."""
    where = found.weights[0]
    if "lora_parameters" in config:
        kind = config.get("fine_tune_type", "lora")
        if kind != "lora":
            raise AdapterError(
                f"{found.folder}: fine_tune_type is {shown(kind)}; only 'lora' can be read: fuse it "
                "into its base with mlx_lm.fuse"
            )
        layout, scale = "mlx-lm", _positive(config["lora_parameters"], "scale", found.folder)
        plain = {"base_model_name_or_path": config.get("model")}
    else:
        layout, noted = "mttl", _notes(where, config)
        rank, alpha = (_positive(noted, key, where) for key in ("lora_rank", "lora_alpha"))
        scale, plain = alpha / rank, {"base_model_name_or_path": noted.get("model")}
    _require_text(found.folder, plain, ("base_model_name_or_path",))
    updates: list[StoredUpdate] = []
    for module, pair in contents.pairs.items():
        updates += layouts.updates(
            module, pair, where, scale=scale, rank=None, transposed=True, stacked=False
        )
    return layout, plain, updates


def _notes(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """lora_rank, lora_alpha and the base of an expert of mttl: of the .meta beside it, or of settings."""
    if config:
        return {"lora_rank": config.get("r"), "lora_alpha": config.get("lora_alpha"),
                "model": config.get("base_model_name_or_path")}  # fmt: skip
    meta = file.with_suffix(".meta")
    noted: dict[str, Any] = {}
    if meta.is_file():
        pending, seen = [plain_pickle(meta)], 0
        while pending and seen < 1000:
            part, seen = pending.pop(), seen + 1
            if isinstance(part, dict):
                noted = {
                    key: part[key] for key in ("lora_rank", "lora_alpha", "model") if key in part
                } | noted
                pending += part.values()
    if not {"lora_rank", "lora_alpha"} <= noted.keys():
        raise AdapterError(
            f"{file} has tensors as mttl and mlx-lm name them, and nothing beside it says their scale: put "
            f"an adapter_config.json with r and lora_alpha in its folder, or mttl's {meta.name}"
        )
    return noted


def _positive(settings: object, key: str, where: Path) -> float:
    value = settings.get(key) if isinstance(settings, Mapping) else None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value <= peft_settings.LARGEST
    ):
        raise AdapterError(f"{where}: {key} is {shown(value)}; it must be a number above 0")
    return value


def _require_text(file: Path, content: Mapping[str, object], keys: tuple[str, ...]) -> None:
    for key in keys:
        value = content.get(key)
        if not isinstance(value, str | None):
            raise AdapterError(f"{file}: {key} is {shown(value)}; it must be text")


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a file of JSON. Errors: AdapterError."""
    path = Path(path)
    if not path.exists():
        raise AdapterError(
            f"{path} is missing: {path.parent} holds no PEFT adapter, or its writing was cut short"
        )
    try:
        return read_object(path)
    except FileError as error:
        raise AdapterError(f"{error}; write the adapter anew") from error
