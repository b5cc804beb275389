"""Measured rows as cells, joined with predictions by spec hash."""
