"""Anybody's own questions to anybody's own adapters: a study written down in TOML."""
