"""What was measured of a domain, and what was not, as the project's pages and the report show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_experiments.domains.task import DOMAINS
from predictors import agreement, parts, tiers
from predictors.agreement import Agreement
from results import libraries, transfer
from results.cells import Cell
from results.libraries import Errors, Line
from results.transfer import Transfer


@dataclass(frozen=True, eq=False)
class Section:
    """One domain.

    lines: every cell at its rule's weights, with the paper's number and what differs. errors: shares of
    `counted`, outcomes and marks. transfers: merges beside the better of their adapters. agreement: of T3
    with merges; refused: by reason the number of merges that it does not speak of. rows: of the paper's
    tables that no cell stands beside. sources: data sets of which there are no cells.
    """

    name: str
    about: str
    lines: Sequence[Line]
    counted: Sequence[str]
    errors: Sequence[Errors]
    transfers: Sequence[Transfer]
    agreement: Sequence[Agreement]
    refused: Mapping[str, int]
    rows: Sequence[str]
    sources: Sequence[str]

    @property
    def verdicts(self) -> dict[str, int]:
        """How many merges are below, undecided and above."""
        counts = Counter(one.verdict for one in self.transfers)
        return {verdict: counts[verdict] for verdict in transfer.VERDICTS}


def names() -> list[str]:
    """The domains that the paper measures and that have data sets."""
    return [name for name, domain in DOMAINS.items() if domain.sources]


def section(name: str, cells: Sequence[Cell]) -> Section:
    """The section of a domain, of all cells that are of it; without any it says what is missing."""
    domain, own = DOMAINS[name], [cell for cell in cells if cell.info.domain == name]
    counted = (*libraries.outcomes(own), *domain.counted)
    said = parts.predicted(own)
    by_key = {tiers.key(line): line for line in parts.lines(said)}
    datasets = {cell.info.dataset for cell in own}
    return Section(
        name,
        domain.about,
        libraries.lines(own),
        counted,
        libraries.errors(own, counted),
        transfer.transfers(own),
        agreement.table(own, (), by_key, {}),
        Counter(one.refused for one in said if one.refused),
        libraries.unmeasured(name, own),
        [source for source in domain.sources if source not in datasets],
    )
