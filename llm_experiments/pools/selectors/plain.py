"""Without looking at the adapters: all of them, or some by chance."""

from __future__ import annotations

import numpy as np

from llm_experiments.pools.selectors import Scores, Selection, selector


@selector("all")
def everything(job: Selection) -> Scores:
    """0 for every adapter: the pool's own order."""
    return [0.0] * len(job.members)


@selector("random")
def random(job: Selection) -> Scores:
    """A permutation drawn by the seed; the same one whatever order the rows come in."""
    drawn = np.random.default_rng(job.seed).permutation(len(job.members))
    places = {member.id: place for place, member in enumerate(sorted(job.members, key=lambda one: one.id))}
    return [float(drawn[places[member.id]]) for member in job.members]
