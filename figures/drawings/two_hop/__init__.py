"""Drawings of measurements on two-hop questions, of cells of that domain alone."""

from __future__ import annotations

from figures.registry import cells_of

CELLS = cells_of("two-hop")
#: What libraries of several adapters, and adapters alone, are called.
LIBRARIES = {
    ("hop1", "hop2"): "Two adapters, one for each hop",
    ("hop1", "hop2", "oracle"): "The same and the oracle",
}
ALONE = {
    "hop1": "hop 1",
    "hop2": "hop 2",
    "mixed": "mixed: both hops",
    "oracle": "oracle: the questions",
    "joint": "joint: all of these",
}
