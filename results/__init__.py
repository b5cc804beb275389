"""Measured rows: read, counted, tested, set in tables and on pages."""
