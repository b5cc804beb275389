"""Where measurements come from: the commit and the versions of what measured."""

from __future__ import annotations

from pathlib import Path

from toytransformer.compositions import io

ROOT = Path(__file__).parents[1]
CODE = tuple(ROOT / name for name in ("toytransformer", "results", "llm_experiments"))
PACKAGES = (*io.PACKAGES, "torch", "transformers", "peft")


def origin() -> dict[str, object]:
    """`provenance` of the code that measures language models."""
    return io.provenance(CODE, PACKAGES)
