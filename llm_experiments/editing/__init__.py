"""Closed-form edits of one MLP, and the coefficients that the theory speaks of."""
