"""Questions whose answer is a place, as asked and at the level of continents: the paper's appendix A.6."""
