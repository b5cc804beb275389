"""The ledger: every claim of the theory, checked by running it (`python -m toytransformer verify`)."""

from toytransformer.ledger import (  # each registers its claims
    adapters,
    attention,
    composition,
    kernels,
    merging,
    other_adapters,
    relabelling,
    routing,
    survival,
    tables,
)
from toytransformer.ledger.registry import CLAIMS, Claim, Row, Run, Tolerance, verify

__all__ = [
    "CLAIMS",
    "Claim",
    "Row",
    "Run",
    "Tolerance",
    "adapters",
    "attention",
    "composition",
    "kernels",
    "merging",
    "other_adapters",
    "relabelling",
    "routing",
    "survival",
    "tables",
    "verify",
]
