"""Experiments as cells: planned, computed once, kept, tabulated."""
