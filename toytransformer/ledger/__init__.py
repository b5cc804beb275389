"""The ledger: every claim of the theory, checked by running it (`python -m toytransformer verify`)."""

# Each registers its claims when it is imported: this is the order of the ledger.
# isort: off
from toytransformer.ledger import (
    closed_form,
    rank_and_gauge,
    kernels,
    spread,
    constants,
    attention,
    composition,
    merging,
    other_adapters,
    relabelling,
    routing,
    survival,
    capacity,
    mixture,
    bridges,
    recycled,
    typed,
    unseen,
    tables,
    idealisations,
    layers,
)

# isort: on
from toytransformer.ledger.registry import CLAIMS, Claim, Row, Run, Tolerance, verify

__all__ = [
    "CLAIMS",
    "Claim",
    "Row",
    "Run",
    "Tolerance",
    "attention",
    "bridges",
    "capacity",
    "closed_form",
    "composition",
    "constants",
    "idealisations",
    "kernels",
    "layers",
    "merging",
    "mixture",
    "other_adapters",
    "rank_and_gauge",
    "recycled",
    "relabelling",
    "routing",
    "spread",
    "survival",
    "tables",
    "typed",
    "unseen",
    "verify",
]
