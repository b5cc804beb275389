"""Profiles: a training recipe by name; how large a measurement is under it, each domain says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_experiments.adapters.recipe import Training
from llm_experiments.domains.task import DOMAINS
from toytransformer.compositions import SpecError


@dataclass(frozen=True)
class Profile:
    """The recipe of a measurement, and by `size` how large it is.

    logprobs: of which questions log-probabilities are kept, one of domains.task.LOGPROBS.
    temperatures: those that a routing rule's is chosen from. sizes: by domain, in that domain's own terms, in
    place of what the domain says.
    """

    name: str
    about: str
    training: Training
    logprobs: str = "direct"
    temperatures: tuple[float, ...] = (10.0, 1.0, 0.3, 0.1, 0.03, 0.01)
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def size(self, domain: str) -> Any:
        """How large a measurement of a domain is. Errors: SpecError where the domain does not say."""
        if domain in self.sizes:
            return self.sizes[domain]
        sizes = DOMAINS[domain].sizes
        if self.name not in sizes:
            raise SpecError(
                f"domain {domain!r} has no size for profile {self.name!r}: choose {', '.join(sizes)}, or "
                "name one in the domain"
            )
        return sizes[self.name]


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="embedded",
            about="the embedded model on a CPU: 20 triplets, 46/2/2 paraphrases, 400 steps each",
            training=Training(learning_rate=4e-3, steps=400),
        ),
        Profile(
            name="paper",
            about="the paper's size and recipe: 100 triplets, 46/2/2 templates, Table 11",
            training=Training(),
        ),
        Profile(
            name="small",
            about="a 100M-parameter model on a CPU: 24 triplets, 8 training templates, 160 steps each",
            training=Training(learning_rate=1e-3, steps=160, base_dtype="bfloat16"),
            temperatures=(1.0, 0.1, 0.01),
        ),
        Profile(
            name="brief",
            about="a 500M-parameter model on a CPU that multiplies no bfloat16: 24 triplets, 4 training "
            "templates, 5 epochs",
            training=Training(learning_rate=1e-3, batch=8, epochs=5),
            temperatures=(1.0, 0.1, 0.01),
        ),
    )
}
