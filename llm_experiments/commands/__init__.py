"""The commands of `python -m llm_experiments`, by what they work on: runs, rows, adapters, data."""
