"""What a base model has at each name, without loading its weights: shapes of layers, embeddings, "
"parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from llm_experiments.models import sources
from llm_experiments.models.layers import linear_shape
from llm_experiments.models.sources import ModelError, Source


@dataclass(frozen=True)
class BaseShapes:
    """A base model by names. id, digest: as in `Source`. linear: (out, in) of linear layers; embeddings:
    (width, tokens), the size of an update there; stacked: shapes of parameters with three axes.
    """

    id: str
    digest: str
    linear: Mapping[str, tuple[int, int]]
    embeddings: Mapping[str, tuple[int, int]]
    stacked: Mapping[str, tuple[int, ...]]

    def size(self, name: str, kind: str) -> tuple[int, int] | None:
        """(out, in) of what an update of this kind is added to at `name`; None where there is no such
        thing."""
        if kind == "embedding":
            return self.embeddings.get(name)
        return self.linear.get(name)


def base_shapes(name: str, *, revision: str | None = None) -> BaseShapes:
    """The shapes of a model that `sources.find` finds. Errors: ModelError."""
    source = sources.find(name, revision=revision)
    model = _empty(source)
    linear, embeddings, stacked = {}, {}, {}
    for path, module in model.named_modules():
        if (shape := linear_shape(module)) is not None:
            linear[path] = shape
        elif isinstance(module, nn.Embedding):
            embeddings[path] = (module.embedding_dim, module.num_embeddings)
        else:
            for parameter, tensor in module.named_parameters(recurse=False):
                if tensor.ndim == 3:
                    stacked[f"{path}.{parameter}"] = tuple(tensor.shape)
    return BaseShapes(source.id, source.digest, linear, embeddings, stacked)


def _empty(source: Source) -> nn.Module:
    """The model on torch's device without memory. Errors: ModelError for a configuration of nonsense."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
        sources.refuse_depth(config.to_dict(), len(source.tensors))
        shapes = [shape for shape, _ in source.tensors.values()]
        if problem := sources.implausible(config, shapes):
            raise ModelError(f"{source.id!r}: its configuration describes {problem}")
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, trust_remote_code=False, attn_implementation="eager"
            )
    except ModelError:
        raise
    except Exception as error:  # of a configuration of nonsense, anything
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ModelError(
            f"{source.id!r} cannot be described ({type(error).__name__}: {reason[:300]}): its configuration "
            "is damaged, or transformers does not know this architecture"
        ) from error
