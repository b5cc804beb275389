"""An adapter on the hub as a row: its settings, and the headers of its files by HTTP ranges; no numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llm_experiments.adapters import reader
from llm_experiments.adapters.locate import CONFIG, EXTRA, HUB_ID, WEIGHTS, Located
from llm_experiments.adapters.tensor_files import StoredTensor, floating
from llm_experiments.pools.members import Member, refused, row
from toytransformer.adapters import AdapterError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


def hub_stamp(source: str) -> str:
    """The commit that a hub id means now. Errors: AdapterError where the hub does not say."""
    return str(_info(source, files=False).sha)


def hub_member(id: str, source: str, stamp: str) -> Member:
    """The row of a repository at that commit; see `members.local_member`.

    A refusal has no stamp, so that it is asked for again: the network may have been the reason.
    """
    try:
        return _described(id, source, stamp)
    except Exception as error:  # as of files: a stranger's repository never ends the indexing
        return refused(id, source, "", error)


def _described(id: str, source: str, stamp: str) -> Member:
    from huggingface_hub import HfApi, hf_hub_download

    repo, folder = _parts(source)
    info = _info(source, files=True)
    held = {one.rfilename: one for one in info.siblings or ()}
    weights = f"{folder}{WEIGHTS}"
    if f"{folder}{CONFIG}" not in held or weights not in held:
        several = sorted({str(Path(name).parent) for name in held if name.endswith(f"/{CONFIG}")})
        hint = f"; it holds adapters in {', '.join(several[:5])}: add :FOLDER" if several else ""
        raise AdapterError(
            f"{source} has no {CONFIG} with {WEIGHTS}, which alone are indexed on the hub{hint}"
        )
    fetched = {
        name: reader.read_settings(hf_hub_download(repo, f"{folder}{name}", revision=stamp))
        for name in (CONFIG, EXTRA)
        if f"{folder}{name}" in held
    }
    header = HfApi().parse_safetensors_file_metadata(repo, weights, revision=stamp)
    where = Path(source)
    tensors = {
        key: StoredTensor(key, where, tuple(tensor.shape), floating(tensor.dtype), _unread)
        for key, tensor in header.tensors.items()
    }
    found = Located(source, where, (where,), where / CONFIG)
    adapter = reader.described(found, tensors, fetched[CONFIG], fetched.get(EXTRA, {}))
    files = {name: one for name, one in held.items() if name in (weights, f"{folder}{CONFIG}")}
    hashes = [str(one.lfs.sha256 if one.lfs else one.blob_id) for _, one in sorted(files.items())]
    digest = hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]
    card: dict[str, Any] = info.card_data.to_dict() if info.card_data else {}
    return row(id, source, stamp, adapter, card, digest, held[weights].size or 0)


def _info(source: str, *, files: bool) -> ModelInfo:
    from huggingface_hub import HfApi

    repo, _ = _parts(source)
    match = HUB_ID.fullmatch(source)
    try:
        return HfApi().model_info(repo, revision=match["revision"] if match else None, files_metadata=files)
    except Exception as error:  # the hub's errors share no class: bad names, no network, gated
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise AdapterError(
            f"{repo!r} cannot be asked for on the hub ({type(error).__name__}: {reason[:200]})"
        ) from error


def _parts(source: str) -> tuple[str, str]:
    """The repository, and the folder in it with a slash behind, empty for the repository itself."""
    match = HUB_ID.fullmatch(source)
    if match is None or ".." in (match["folder"] or "").split("/"):
        raise AdapterError(
            f"{source!r} is no folder here and no hub id (org/name, org/name@revision, org/name:folder)"
        )
    return match["repo"], f"{match['folder'].strip('/')}/" if match["folder"] else ""


def _unread() -> torch.Tensor:
    raise AdapterError("a row of a pool has no numbers; open the adapter to read them")
