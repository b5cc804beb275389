"""Drawings of what the theory computes of two-hop compositions."""
