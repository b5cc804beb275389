"""The ledger: every claim of the theory, checked by running it (`python -m toytransformer verify`)."""

from toytransformer.ledger import adapters, composition, kernels, merging, tables  # each registers its claims
from toytransformer.ledger.registry import CLAIMS, Claim, Row, Run, Tolerance, verify

__all__ = [
    "CLAIMS",
    "Claim",
    "Row",
    "Run",
    "Tolerance",
    "adapters",
    "composition",
    "kernels",
    "merging",
    "tables",
    "verify",
]
